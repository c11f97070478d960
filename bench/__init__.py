"""How fast is this model here, against everything else its user could run?

`peers` are the rows, `measure` proves and times them, `statistics` sums up the samples, `results` holds and `report` shows them.
"""

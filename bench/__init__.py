"""How fast is this model here, against everything else its user could run?

`subject` is the model, `peers` are the rows, `measure` proves and times them, `run` does that for a whole request, with `cold_start`, `ladder`
and `roofline` beside it; `statistics` sums up the samples, `results` holds and `report` shows them.
"""

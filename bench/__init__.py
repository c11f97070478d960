"""How fast is this model here, against everything else its user could run?

Five rooms, each importing only from those before it: `records` (what is kept: environment, samples, results, statistics, comparisons),
`peers` (the model under test and the rows beside it), `measuring` (proves each row and times them in turns), `studies` (cold start, ladder of
techniques, roofline, layers) and `views` (tables, pictures, the page, the README's section). `run` does a whole request with them, `demo` is
`make demo`.

The peers use the runtimes directly and share no code with our engines, on purpose: a judge does not borrow from the defendant.
"""

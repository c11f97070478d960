"""The model under test, and the rows that are timed: ours and everything else that its user could run.

The other runtimes' rows are written against those runtimes alone and share no code with our engines: a judge does not borrow from the defendant.
"""

"""The ways to compute a convolution, a file for each library that can: `base` says what one must offer, `table` lists
them all.

An implementation that is `in_place` writes its output channels where the plan wants them. A library convolution brings
its result in memory of its own; where that is a member of a concat, the launch that copies it there applies bias and
ReLU on the way.

To add one: write a class with the members of `base.Implementation` in a file of its own, put it into `table`, and its
name into `options.IMPLEMENTATIONS`.
"""

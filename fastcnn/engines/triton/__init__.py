"""The `triton` engine: a network on a GPU as a few dozen launches over one arena of NHWC activations, replayed as a
CUDA graph.

The road of a model, and of a call::

    optimize      engine.py     TritonEngine.lower: fuse the graph, hold it ready
                  matching.py   which steps the graph becomes (the kinds of steps are in steps.py)
    first batch   executor.py   a program for each batch size; memory, CUDA graphs, streams, threads
    of a size     schedule.py   make_schedule: the frozen plan of everything below
                  ├ placement.py   which activation lies in which buffer, in which of its channels
                  ├ problem.py     what each convolution has to do there, and under which key that is remembered
                  ├ tuning.py      Chooser: an implementation for each problem, one launch or several for a level
                  └ lifetimes.py, arena.py   how long a buffer is needed, and its offset in the arena
                  launches.py   a call for each step of the schedule
                  program.py    the calls bound to an arena
    every call    executor.py   copy in, replay, copy out

What it chooses among, and how:

    implementations/   ways to compute a convolution, a file for each library: our kernels, PyTorch's own, cuDNN's
                       graph API; and several convolutions in one launch
    choices.py         what was measured before: on disk, and what ships with the package in shipped/
    trial.py           one convolution on random operands, on which a candidate is held against PyTorch
    device_clock.py    how long work takes on the GPU
    streams.py         launches that run at the same time
    compile_ahead.py   kernels compiled in parallel before they are needed

Beside the road: options.py says which techniques may be used, ceilings.py what the GPU would allow for the plan's share
of the roofline, and survey.py is the door for those who measure implementations from outside.

Each imports only what stands below it: steps and problem; implementations; trial and tuning; schedule; launches,
program and executor; engine, survey.
"""

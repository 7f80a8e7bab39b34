"""Training of lifted models: one loop, whatever the loss; distillation is built on it.

`data` says which samples are for learning and which to judge by, `loading` brings them up ahead of
time, `teacher` answers once and remembers, `objective` makes a loss of answers, `loop` does the
steps, and `checkpoint` lets a killed run go on as if nothing had happened.
"""

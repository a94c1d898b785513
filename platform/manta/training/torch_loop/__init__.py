"""manta's own loop for torch: what each Ray Train worker runs of a training that names no ``fn``.

:mod:`.loop` is read first. What an epoch does follows from the checkpoint before it, the seed, its number and
the worker's rank alone, so that a training that went on from a checkpoint ends as if nothing had happened.
"""

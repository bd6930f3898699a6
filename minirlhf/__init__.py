"""minirlhf: the whole of RLHF on one GPU, or on a laptop without one."""


class UserError(Exception):
    """A mistake in the input. The message says what is wrong, where, and what to do."""


class Stopped(UserError):
    """The run cannot go on. Its last checkpoint is good."""

"""minirlhf: the whole of RLHF on one GPU, or on a laptop without one."""


class UserError(Exception):
    """A mistake in the input. The message says what is wrong, where, and what to do."""

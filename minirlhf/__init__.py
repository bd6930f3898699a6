"""minirlhf: the whole of RLHF on one GPU, or on a laptop without one."""


class UserError(Exception):
    """An input that its user can mend: the message says what is wrong, where, and what to do. Scripts exit with code 2."""

"""A disk that is full: no fault of what was being done, which goes on once there is room."""

import errno
import os

NO_ROOM = errno.ENOSPC, errno.EDQUOT


def found_no_room(error: BaseException) -> bool:
    """Whether a disk was full. Libraries that write files in other languages have kinds of their own, and the system's words."""
    return getattr(error, "errno", None) in NO_ROOM or os.strerror(errno.ENOSPC) in str(error)


def no_room(error: str) -> ValueError:
    return ValueError(f"no room is left on a disk ({error}): free some, and go on with --resume; nothing that was done is lost")

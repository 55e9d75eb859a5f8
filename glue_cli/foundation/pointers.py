"""The small placeholder files that git-lfs and git-annex leave where a large file has not been downloaded."""

# The beginning of a placeholder -> what it is, and the command that downloads the file.
_POINTERS = {
    b"version https://git-lfs.github.com/spec/": ("a git-lfs pointer", "git lfs pull"),
    b"/annex/objects/": ("a git-annex pointer", "git annex get"),
}


def pointer_to(start: bytes) -> tuple[str, str] | None:
    """Tell from the first 64 or more bytes of a file whether it is only a pointer to another one.

    Returns:
        what it is, such as "a git-lfs pointer", and the command that downloads the file; None for any other file.
    """
    return next((pointer for beginning, pointer in _POINTERS.items() if start.startswith(beginning)), None)

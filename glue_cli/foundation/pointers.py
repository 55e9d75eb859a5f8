"""Small texts that stand for files which were not fetched: those of git-lfs and git-annex."""

# How such a text begins -> what it is, and what fetches the file.
_POINTERS = {
    b"version https://git-lfs.github.com/spec/": ("a git-lfs pointer", "git lfs pull"),
    b"/annex/objects/": ("a git-annex pointer", "git annex get"),
}


def pointer_to(start: bytes) -> tuple[str, str] | None:
    """Tell from the first bytes of a file, 64 or more, whether it only points to another one.

    Returns:
        what it is, such as "a git-lfs pointer", and the command that fetches the file; None for any other file.
    """
    return next((found for begin, found in _POINTERS.items() if start.startswith(begin)), None)

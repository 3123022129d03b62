"""The packages of the extra `ecg`, without which medjax imports but has no ECGs."""

PACKAGES = ("wfdb", "pydicom", "ecgdatakit", "pyedflib", "defusedxml", "scipy", "sklearn", "matplotlib")


def what_to_install(error: ImportError) -> str | None:
    """One sentence on what to do about a failed import; None where it is of no package of the extra."""
    package = (error.name or "").partition(".")[0]
    if package not in PACKAGES:
        return None
    return f"got no package {package}, expected it for work on ECGs; pip install 'medjax[ecg]'."

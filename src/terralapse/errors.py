"""One class for each way that a run can fail because of what it was given.

Every message says three things: what (a file, a band, a setting), what is wrong with it, and what to do
next. The command line prints the message and exits with code 2; a Python caller catches `TerralapseError`
or the class that it can do something about. Programming errors are not wrapped.
"""

from __future__ import annotations


class TerralapseError(Exception):
    """The root of all errors that a user can mend.

    Args:
        what: the subject: a path, a band, a setting with its value.
        fault: what is wrong with it, in one clause.
        hint: the next step.
    """

    def __init__(self, what: object, fault: str, hint: str) -> None:
        self.what = str(what)
        self.fault = fault
        self.hint = hint
        super().__init__(f"{self.what}: {fault}. {hint}")


# --- files -----------------------------------------------------------------------------------------
class FileMissingError(TerralapseError):
    """A path that does not exist."""


class UnreadableFileError(TerralapseError):
    """Bytes that are not what the name says, or no supported format at all."""


class TruncatedFileError(TerralapseError):
    """A file that ends early or has a broken block; names file, band and block."""


class HostileFileError(TerralapseError):
    """A header that asks for more memory or work than any honest file of its size."""


class UnsafeWeightsError(TerralapseError):
    """A checkpoint that would run code when it is loaded, or whose hash is wrong."""


class WeightsMismatchError(TerralapseError):
    """A checkpoint whose names or shapes are not those of the network."""


# --- places ----------------------------------------------------------------------------------------
class NoGeoreferenceError(TerralapseError):
    """No CRS or no transform, and nothing said about it by the user."""


class UnsupportedGeoreferenceError(TerralapseError):
    """A georeference that would have to be flattened to be used (RPC without heights, for example)."""


class NoOverlapError(TerralapseError):
    """Two inputs (or an area of interest) that share no ground."""


class NoValidDataError(TerralapseError):
    """Nothing but nodata, cloud or shadow where both dates should be."""


# --- what is in them -------------------------------------------------------------------------------
class BandError(TerralapseError):
    """Bands that are missing, unknown or cannot be matched between the two dates."""


class ModelInputError(TerralapseError):
    """A model that cannot run on this input at all (number of dates, number of bands)."""


class UnknownSystemError(TerralapseError):
    """A slug that no card has."""


class SystemNotReadyError(TerralapseError):
    """A slug whose card says `planned`."""


class MissingExtraError(TerralapseError):
    """A feature whose optional dependency is not installed."""


class SettingError(TerralapseError):
    """A setting out of its range, or two that exclude each other."""


# --- results ---------------------------------------------------------------------------------------
class OutputExistsError(TerralapseError):
    """An output folder that already holds a result."""


class OutputLockedError(TerralapseError):
    """An output folder that another run is writing to."""


class OutputNotWritableError(TerralapseError):
    """An output folder that cannot be written: rights, or no space left."""


class ResumeMismatchError(TerralapseError):
    """A half-finished run whose inputs or settings are not those of this one."""


# --- servers -------------------------------------------------------------------------------------
class ServerError(TerralapseError):
    """A `terralapse serve` that is down, refuses, or does not answer as one, or whose analysis failed."""


# --- language models -------------------------------------------------------------------------------
class EndpointError(TerralapseError):
    """An endpoint of a language model that is down, slow, refuses, or does not answer as one."""

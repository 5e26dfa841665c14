"""Random-access sources: what a stream draws from. `len(source)` and `source[index]`, as grain and TFDS have them."""

from typing import Protocol, TypeVar

T_co = TypeVar("T_co", covariant=True)


class RandomAccess(Protocol[T_co]):
    """A finite sequence of samples, read in any order; the same index gives the same sample."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> T_co:
        """The sample at `index` in 0 .. len - 1.

        Raises:
            RejectedRecord: the sample cannot be used; training counts the reason and goes on.
        """


class RejectedRecord(Exception):
    """A sample that cannot be used.

    Attributes:
        reason: a short phrase to count by, the same for every sample with this fault.
    """

    def __init__(self, reason: str, detail: str = ""):
        """Args: reason, to count by; detail, what is wrong in this very sample."""
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason

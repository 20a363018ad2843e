"""The functions of `lowbit` in plain NumPy: same names, same signatures.

The oracle of the tests, and what a user would write without lowbit. ``isa`` is
accepted and ignored.
"""

from lowbit.reference.packing import pack_codes, unpack_codes

__all__ = ["pack_codes", "unpack_codes"]

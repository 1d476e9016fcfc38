"""Tests of the verification kit; a package, so that ``testing.mutants`` and ``testing.peers`` are found."""

"""transformers' own common tests, pointed at the classes of this package (results: docs/reference/common_tests.md)."""

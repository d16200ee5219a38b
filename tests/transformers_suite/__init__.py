"""transformers' own common tests, pointed at the classes of this package (docs/common_tests.md has the results)."""

"""The same codes in the files of other runtimes."""

from sottovoce.exports.run import Export, export

__all__ = ["Export", "export"]

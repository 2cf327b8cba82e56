"""A quantized folder or a bench as one HTML page that needs nothing else: no network, no files beside it."""

from sottovoce.report.page import bench_page, folder_page, write_page

__all__ = ["bench_page", "folder_page", "write_page"]

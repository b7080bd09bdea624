"""Networks as files that run without Python: ONNX, and packages of AOTInductor.

The modules below need packages of the extra ``export``, or a compiler, only when they are called.
"""

from drconv.export.onnx import OnnxExport, export_onnx
from drconv.export.package import PackageExport, export_package

__all__ = ["OnnxExport", "PackageExport", "export_onnx", "export_package"]

from .bundle import load_bundle as load_bundle, save_bundle as save_bundle
from .formats import export_aoti as export_aoti, export_onnx as export_onnx, export_pt2 as export_pt2

from .bundle import load_bundle as load_bundle
from .bundle import save_bundle as save_bundle
from .formats import export_aoti as export_aoti
from .formats import export_onnx as export_onnx
from .formats import export_pt2 as export_pt2

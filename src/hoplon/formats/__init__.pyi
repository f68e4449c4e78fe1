from .base import (
    Field as Field,
    NumberFormat as NumberFormat,
    equal_bits as equal_bits,
    integer_view as integer_view,
    same_bits as same_bits,
)
from .dtypes import Native as Native, native as native
from .fixed import FixedPoint as FixedPoint
from .named import format_named as format_named, one_per_word as one_per_word
from .quantized import Quantized as Quantized

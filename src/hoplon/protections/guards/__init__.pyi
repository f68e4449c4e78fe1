from .aspis import Aspis as Aspis, BlockAspis as BlockAspis
from .baselines.checksum import Checksum as Checksum
from .baselines.radar import Radar as Radar
from .baselines.secded import SecDedMemory as SecDedMemory
from .baselines.structural_coding import StructuralCoding as StructuralCoding
from .baselines.tmr_sparse import TMRSparse as TMRSparse
from .baselines.zero_space import zero_space_decode as zero_space_decode, zero_space_encode as zero_space_encode
from .known_bits.known_bits import KnownBits as KnownBits
from .parity.parity import Parity as Parity
from .tmr import TMR as TMR

from .aspis import Aspis as Aspis
from .baselines.checksum import Checksum as Checksum
from .baselines.secded import SecDedMemory as SecDedMemory
from .baselines.tmr_sparse import TMRSparse as TMRSparse
from .baselines.zero_space import zero_space_decode as zero_space_decode, zero_space_encode as zero_space_encode
from .block_aspis import BlockAspis as BlockAspis
from .known_bits.known_bits import KnownBits as KnownBits
from .parity.parity import Parity as Parity
from .tmr import TMR as TMR

from .activation_sites import Activations as Activations, activations as activations
from .bound import Bound as Bound, ChannelBounds as ChannelBounds
from .channels import ChannelAxis as ChannelAxis, axis_in_value as axis_in_value
from .function_ends import inherent_range as inherent_range
from .histogram import Histogram as Histogram
from .inherent import INHERENT as INHERENT, inherent_ranges as inherent_ranges
from .profile import Profile as Profile, QuantileOf as QuantileOf, SiteProfile as SiteProfile
from .profiling import profile_activations as profile_activations, profile_ranges as profile_ranges
from .ranges import Ranges as Ranges
from .saturation import Saturating as Saturating, saturating_inputs as saturating_inputs

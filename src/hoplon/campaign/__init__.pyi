from . import stratified as stratified
from .bit_search import BitBoundary as BitBoundary, bit_boundary as bit_boundary
from .campaign import Campaign as Campaign
from .forecasting import Forecast as Forecast, forecast as forecast
from .rates import Rate as Rate
from .results import Results as Results, load_results as load_results
from .verification import Record as Record, verify as verify

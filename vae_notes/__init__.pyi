from .anomaly import AnomalyScorer as AnomalyScorer
from .autoencoder import Autoencoder as Autoencoder, mlp as mlp
from .climate import climate_gates as climate_gates
from .convolutional import ConvDecoder as ConvDecoder, ConvEncoder as ConvEncoder
from .core import generator as generator, load_digits as load_digits, pick_device as pick_device
from .data import (
    MinMax as MinMax,
    Standardize as Standardize,
    load_mnist as load_mnist,
    random_split as random_split,
    split_by_time as split_by_time,
    windows as windows,
)
from .denoising import (
    DenoisingAutoencoder as DenoisingAutoencoder,
    GaussianNoise as GaussianNoise,
    MaskingNoise as MaskingNoise,
    SaltAndPepper as SaltAndPepper,
    WienerFilter as WienerFilter,
)
from .diagnostics import diagnose as diagnose
from .elbo import Elbo as Elbo, LinearGaussian as LinearGaussian, log_mean_exp as log_mean_exp, ppca as ppca
from .evaluation import (
    paired_bootstrap as paired_bootstrap,
    results_table as results_table,
    save_result as save_result,
)
from .files import FileFormatError as FileFormatError, load as load, save as save
from .gradients import reparameterize as reparameterize
from .imputation import MaskedImputer as MaskedImputer
from .iwae import IWAE as IWAE, MixturePrior as MixturePrior
from .kl import kl_normal as kl_normal
from .likelihoods import (
    BernoulliLikelihood as BernoulliLikelihood,
    GaussianLikelihood as GaussianLikelihood,
    log_bernoulli as log_bernoulli,
    log_normal as log_normal,
)
from .midi import load_tunes as load_tunes, read_midi as read_midi
from .seasonal import SeasonalVAE as SeasonalVAE
from .series_anomalies import SeriesAnomalyScorer as SeriesAnomalyScorer
from .sparse import SparseAutoencoder as SparseAutoencoder, TopK as TopK
from .tabular_data import Twin as Twin, open_table as open_table, write_twin as write_twin
from .tabular_vae import TabularVAE as TabularVAE
from .temperature import open_meteo as open_meteo, read_temperature as read_temperature
from .training import (
    History as History,
    TrainingDiverged as TrainingDiverged,
    cosine as cosine,
    exponential as exponential,
    fit as fit,
)
from .vae import (
    VAE as VAE,
    GaussianEncoder as GaussianEncoder,
    MLPDecoder as MLPDecoder,
    MLPEncoder as MLPEncoder,
    StandardNormal as StandardNormal,
)
from .vrae import VRAE as VRAE

__version__: str
__all__: list[str]

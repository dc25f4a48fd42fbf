from .core import generator as generator, load_digits as load_digits, pick_device as pick_device
from .elbo import Elbo as Elbo, LinearGaussian as LinearGaussian, log_mean_exp as log_mean_exp, ppca as ppca
from .files import FileFormatError as FileFormatError, load as load, save as save
from .gradients import reparameterize as reparameterize
from .kl import kl_normal as kl_normal
from .likelihoods import (
    BernoulliLikelihood as BernoulliLikelihood,
    GaussianLikelihood as GaussianLikelihood,
    log_bernoulli as log_bernoulli,
    log_normal as log_normal,
)
from .training import (
    History as History,
    TrainingDiverged as TrainingDiverged,
    cosine as cosine,
    exponential as exponential,
    fit as fit,
)
from .vae import (
    VAE as VAE,
    MLPDecoder as MLPDecoder,
    MLPEncoder as MLPEncoder,
    StandardNormal as StandardNormal,
)

__version__: str
__all__: list[str]

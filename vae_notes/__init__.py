"""Autoencoders and variational autoencoders, one step at a time.

The main names can be imported from here; each loads its module when first
used, so that `import vae_notes` alone costs next to nothing."""

from importlib import import_module

__version__ = "0.1.0"

# Hand-written, as is its twin for type checkers, __init__.pyi.
_MODULES = {
    "core": ["generator", "load_digits", "pick_device"],
    "likelihoods": ["BernoulliLikelihood", "GaussianLikelihood",
                    "log_bernoulli", "log_normal"],
    "kl": ["kl_normal"],
    "elbo": ["Elbo", "LinearGaussian", "log_mean_exp", "ppca"],
    "gradients": ["reparameterize"],
    "files": ["FileFormatError", "load", "save"],
    "training": ["History", "TrainingDiverged", "cosine", "exponential",
                 "fit"],
    "evaluation": ["paired_bootstrap", "results_table", "save_result"],
    "data": ["MinMax", "Standardize", "load_mnist", "random_split",
             "split_by_time", "windows"],
    "autoencoder": ["Autoencoder", "mlp"],
    "denoising": ["DenoisingAutoencoder", "GaussianNoise", "MaskingNoise",
                  "SaltAndPepper", "WienerFilter"],
    "sparse": ["SparseAutoencoder", "TopK"],
    "convolutional": ["ConvDecoder", "ConvEncoder"],
    "imputation": ["MaskedImputer"],
    "series_anomalies": ["SeriesAnomalyScorer"],
    "vae": ["VAE", "GaussianEncoder", "MLPDecoder", "MLPEncoder",
            "StandardNormal"],
    "diagnostics": ["diagnose"],
    "anomaly": ["AnomalyScorer"],
    "iwae": ["IWAE", "MixturePrior"],
    "tabular_data": ["Twin", "open_table", "write_twin"],
    "tabular_vae": ["TabularVAE"],
    "temperature": ["open_meteo", "read_temperature"],
    "seasonal": ["SeasonalVAE"],
    "climate": ["climate_gates"],
    "midi": ["load_tunes", "read_midi"],
    "vrae": ["VRAE"],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value  # the next look-up is direct
    return value


def __dir__():
    return sorted([*globals(), *__all__])

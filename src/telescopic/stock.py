"""Of which arguments torch's own layers are built: those that attributes of the same names keep."""

from torch import nn

_CHANNELS = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
_CONV = (*_CHANNELS, "groups", "bias", "padding_mode")
_BATCH_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats", "bias")
_AVG_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
_MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode")
_EMBEDDING = ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
STOCK: tuple[tuple[tuple[type[nn.Module], ...], tuple[str, ...]], ...] = (
    ((nn.Linear,), ("in_features", "out_features", "bias")),
    ((nn.Embedding,), _EMBEDDING),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), _CONV),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), (*_CONV, "output_padding")),
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _BATCH_NORM),
    ((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _BATCH_NORM),
    ((nn.GroupNorm,), ("num_groups", "num_channels", "eps", "affine", "bias")),
    ((nn.LayerNorm,), ("normalized_shape", "eps", "elementwise_affine", "bias")),
    ((nn.RMSNorm,), ("normalized_shape", "eps", "elementwise_affine")),
    ((nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid), ("inplace",)),
    ((nn.Identity, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Softsign), ()),
    ((nn.LeakyReLU,), ("negative_slope", "inplace")),
    ((nn.ELU, nn.CELU), ("alpha", "inplace")),
    ((nn.Hardtanh,), ("min_val", "max_val", "inplace")),
    ((nn.PReLU,), ("num_parameters", "init")),
    ((nn.GELU,), ("approximate",)),
    ((nn.Softplus,), ("beta", "threshold")),
    ((nn.Softmax, nn.LogSoftmax, nn.GLU), ("dim",)),
    ((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout), ("p", "inplace")),
    ((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _MAX_POOL),
    ((nn.AvgPool1d,), _AVG_POOL),
    ((nn.AvgPool2d, nn.AvgPool3d), (*_AVG_POOL, "divisor_override")),
    ((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), ("output_size",)),
    ((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), ("output_size", "return_indices")),
    ((nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad2d, nn.ReplicationPad2d), ("padding",)),
    ((nn.Upsample,), ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")),
    ((nn.PixelShuffle,), ("upscale_factor",)),
    ((nn.Flatten,), ("start_dim", "end_dim")),
    ((nn.Unflatten,), ("dim", "unflattened_size")),
)

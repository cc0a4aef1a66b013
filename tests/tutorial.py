"""Names and shapes of the tutorial network's weights."""

TUTORIAL = {
    "encoder.0.weight": (128, 784),
    "encoder.0.bias": (128,),
    "encoder.2.weight": (64, 128),
    "encoder.2.bias": (64,),
    "encoder.4.weight": (12, 64),
    "encoder.4.bias": (12,),
    "encoder.6.weight": (2, 12),
    "encoder.6.bias": (2,),
    "decoder.0.weight": (12, 2),
    "decoder.0.bias": (12,),
    "decoder.2.weight": (64, 12),
    "decoder.2.bias": (64,),
    "decoder.4.weight": (128, 64),
    "decoder.4.bias": (128,),
    "decoder.6.weight": (784, 128),
    "decoder.6.bias": (784,),
}

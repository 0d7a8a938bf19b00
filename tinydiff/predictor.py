"""Where the two towers meet: a network on Tensors becomes a predictor on arrays."""

from tinydiff.diffusion.prediction import PREDICTS


def denoiser(unet, schedule, context=None, class_labels=None):
    """A predictor (x_t, t) -> Prediction from a U-Net; t is the schedule's, 1 … T.

    Whatever the network predicts (unet.config.predicts), and however it counts time
    (unet.config.t_first), the Prediction holds x0 and eps. context (N, L, D) goes with x_t (N, …).
    """
    convert = PREDICTS[unet.config.predicts]

    def predict(x_t, t):
        output = unet.predict(x_t, t - 1 + unet.config.t_first, context, class_labels)
        return convert(x_t, output, schedule.signal(t), schedule.noise(t))

    return predict

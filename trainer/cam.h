/* cam.h - class-activation maps (arXiv:1512.04150; figure 7 of arXiv:1905.11946): where in a picture a network sees a class.
 *
 * After the last convolution a network averages each of its C activations F over the picture and classifies the averages, so
 *
 *     logit(c) = bias(c) + sum_k W[c,k] * mean_yx F(y,x,k) = bias(c) + mean_yx M(y,x),     M(y,x) = sum_k W[c,k] * F(y,x,k)
 *
 * M says how much each place contributes to class c.  It is enlarged to the picture, spread over 0..1 and laid over it in colours. */
#ifndef EN_CAM_H
#define EN_CAM_H

#include "trainer/net.h"

/* The activations before the mean, (h*w, co) of the head, of the first image of the last forward.  host (h*w * co) = */
en_status en_net_features(en_net *net, float *host);

/* map (hw) = features (hw, c) times weights (c); sums in double */
void en_cam_map(int64_t hw, int64_t c, const float *features, const float *weights, float *map);
/* out (side, side) = map (h, w), bilinear between the centres of its cells, level beyond the outermost ones */
void en_cam_enlarge(int64_t h, int64_t w, const float *map, int side, float *out);
/* rgb (n, 3): half of what it was, half the colour of map (n), from the smallest value (blue) to the largest (red); all alike: blue */
void en_cam_paint(int64_t n, const float *map, uint8_t *rgb);

#endif

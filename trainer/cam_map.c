#include "trainer/cam.h"
#include "trainer/net_state.h"

#include <math.h>
#include <stdlib.h>

/* The pass that averages gives each place its own activation when it is told that every place is an image of one pixel. */
en_status en_net_features(en_net *net, float *host)
{
    const en_model *m = net->m;
    const struct en_backend_ops *ops = net->be->ops;
    const int64_t hw = m->head.h * m->head.w, c = m->head.co, c_p = m->head.co_p;
    const en_operand u = en_net_averages(net);
    const size_t bytes = (size_t)(hw * c_p) * sizeof(float);
    void *device = NULL;
    float *padded = NULL;
    en_status status = EN_OK;
    EN_TRY_OUT(ops->alloc(net->be, bytes, &device), "memory for activations");
    padded = malloc(bytes);
    EN_REQUIRE_OUT(padded, EN_ENOMEM, "no memory for activations");
    EN_TRY_OUT(ops->pool_forward(net->be, hw, 1, c_p, &u, NULL, device), "activations before the mean");
    EN_TRY_OUT(ops->download(net->be, padded, device, bytes), "activations before the mean");
    for (int64_t r = 0; r < hw; r++)
        for (int64_t k = 0; k < c; k++) host[r * c + k] = padded[r * c_p + k];
out:
    free(padded);
    if (device) ops->free(net->be, device);
    return status;
}

void en_cam_map(int64_t hw, int64_t c, const float *features, const float *weights, float *map)
{
    for (int64_t r = 0; r < hw; r++) {
        double sum = 0;
        for (int64_t k = 0; k < c; k++) sum += (double)features[r * c + k] * (double)weights[k];
        map[r] = (float)sum;
    }
}

/* Where pixel i of `side` lies among n cells: cell *from and the share of the next. */
static float place(int i, int side, int64_t n, int64_t *from)
{
    const double at = ((double)i + 0.5) * (double)n / side - 0.5, last = (double)(n - 1), in = at < 0 ? 0 : at > last ? last : at;
    *from = (int64_t)in;
    if (*from == n - 1 && n > 1) --*from;
    return (float)(in - (double)*from);
}

void en_cam_enlarge(int64_t h, int64_t w, const float *map, int side, float *out)
{
    for (int i = 0; i < side; i++) {
        int64_t y, x;
        const float fy = place(i, side, h, &y);
        const float *upper = map + y * w, *lower = h > 1 ? upper + w : upper;
        for (int j = 0; j < side; j++) {
            const float fx = place(j, side, w, &x);
            const int64_t right = w > 1 ? x + 1 : x;
            out[(int64_t)i * side + j] = (1 - fy) * ((1 - fx) * upper[x] + fx * upper[right]) + fy * ((1 - fx) * lower[x] + fx * lower[right]);
        }
    }
}

/* Blue, cyan, yellow, red in equal steps: the figure's colours. */
static float ramp(float t) { return t < 0 ? 0 : t > 1 ? 1 : t; }

void en_cam_paint(int64_t n, const float *map, uint8_t *rgb)
{
    float low = INFINITY, high = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        low = fminf(low, map[i]);
        high = fmaxf(high, map[i]);
    }
    for (int64_t i = 0; i < n; i++) {
        const float t = high > low ? 4 * (map[i] - low) / (high - low) : 0;          /* 0 dark blue, 1 cyan, 2 green, 3 yellow, 4 red */
        const float colour[3] = { ramp(t - 2), t < 3 ? ramp(t) : ramp(4 - t), t < 1 ? 0.5f + 0.5f * t : ramp(2 - t) };
        for (int d = 0; d < 3; d++) rgb[3 * i + d] = (uint8_t)(0.5f * (float)rgb[3 * i + d] + 0.5f * 255 * colour[d] + 0.5f);
    }
}

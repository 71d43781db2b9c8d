#include "trainer/schedule.h"

#include <math.h>

double en_lr_at(const en_schedule *s, int64_t step)
{
    const double warmup = floor(s->warmup_epochs * s->steps_per_epoch), t = (double)step;
    if (t < warmup) return s->base * t / warmup;
    switch (s->kind) {
    case EN_LR_COSINE: {
        const double span = (double)s->total_steps - warmup, done = span > 0 ? (t - warmup) / span : 1;
        return s->base * 0.5 * (1 + cos(M_PI * fmin(done, 1)));
    }
    case EN_LR_POLYNOMIAL: {
        const double span = (double)s->total_steps - warmup + 1, done = span > 0 ? fmin(fmax(t - warmup, 1), span) / span : 1;
        return (s->base - s->end) * pow(1 - done, s->power) + s->end;
    }
    case EN_LR_CONSTANT: return s->base;
    case EN_LR_EXPONENTIAL: break;
    }
    return s->base * pow(s->decay, floor(t / (s->decay_epochs * s->steps_per_epoch)));
}

int64_t en_total_steps(int64_t steps, double epochs, int64_t samples, int64_t global_batch)
{
    return steps > 0 ? steps : (int64_t)(epochs * (double)samples / (double)global_batch);
}

double en_ema_decay(double decay, int64_t n) { return fmin(decay, (1.0 + (double)n) / (10.0 + (double)n)); }

bool en_span_due(const en_span *span, int64_t step, double steps_per_epoch, double seconds)
{
    if (span->count <= 0 || step <= 0) return false;
    switch (span->unit) {
    case EN_SPAN_STEPS:   return fmod((double)step, span->count) == 0;
    case EN_SPAN_SECONDS: return seconds >= span->count;
    case EN_SPAN_EPOCHS:  break;
    }
    const double every = span->count * steps_per_epoch;
    return floor((double)step / every) > floor((double)(step - 1) / every);
}

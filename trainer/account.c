#include "trainer/account.h"

#include <stdio.h>
#include <stdlib.h>

const char *const en_cost_key[EN_COSTS] = { "data_s", "forward_s", "bn_forward_s", "backward_s", "bn_backward_s", "grad_comm_exposed_s",
                                            "optimizer_s", "checkpoint_s", "evaluation_s", "stage_s", "other_s" };
const char *const en_cost_name[EN_COSTS] = { "waiting for images", "forward", "batch-norm sums forward", "backward", "batch-norm sums backward",
                                             "sums of gradients waited for", "update", "checkpoints", "evaluations", "opening stages", "other" };

void en_account_step(en_account *a, const en_step_report *r)
{
    const double device = r->forward_s + r->backward_s + r->grad_comm_s + r->optimizer_s, idle = r->step_s > device ? r->step_s - device : 0;
    a->steps++;
    a->s[EN_COST_FORWARD] += r->forward_s;
    a->s[EN_COST_BACKWARD] += r->backward_s;
    a->s[EN_COST_GRADIENTS] += r->grad_comm_s;
    a->s[EN_COST_UPDATE] += r->optimizer_s;
    a->s[EN_COST_DATA] += r->data_s < idle ? r->data_s : idle;         /* fetched while the device works: waited for by nobody */
    if (!r->bn_known) return;
    a->timed_forward_s += r->forward_s;
    a->timed_backward_s += r->backward_s;
    a->bn_forward_s += r->bn_forward_s;
    a->bn_backward_s += r->bn_backward_s;
}

void en_account_spent(en_account *a, en_cost cost, double seconds) { a->s[cost] += seconds; }
void en_account_wall(en_account *a, double seconds) { a->wall_s += seconds; }

static void split(double *whole, double *part, double timed, double timed_part)
{
    const double share = timed > 0 ? timed_part / timed : 0;
    *part = *whole * (share < 1 ? share : 1);
    *whole -= *part;
}

void en_account_close(en_account *a)
{
    split(&a->s[EN_COST_FORWARD], &a->s[EN_COST_BN_FORWARD], a->timed_forward_s, a->bn_forward_s);
    split(&a->s[EN_COST_BACKWARD], &a->s[EN_COST_BN_BACKWARD], a->timed_backward_s, a->bn_backward_s);
    double known = 0;
    for (int i = 0; i < EN_COST_OTHER; i++) known += a->s[i];
    a->s[EN_COST_OTHER] = a->wall_s - known;
}

static void widen(en_spread *s, double v, int rank, int ranks)
{
    s->mean += v / ranks;
    if (rank == 0 || v < s->low) s->low = v;
    if (rank == 0 || v > s->high) s->high = v;
}

en_status en_account_gather(en_comm *c, const en_account *mine, en_account_report *out)
{
    en_account closed = *mine, *all = c->rank == 0 ? calloc((size_t)c->world_size, sizeof *all) : NULL;
    const en_status room = c->rank != 0 || all ? EN_OK : en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "no memory for %d ranks' accounts", c->world_size);
    en_status status = EN_OK;
    EN_TRY_OUT(en_agree(c, room), "where the time went");
    en_account_close(&closed);
    EN_TRY_OUT(c->ops->gather(c, &closed, sizeof closed, all, 0), "where the time went");
    *out = (en_account_report){ .steps = (int64_t)closed.steps, .ranks = c->world_size };
    for (int r = 0; all && r < c->world_size; r++) {
        widen(&out->wall, all[r].wall_s, r, c->world_size);
        for (int i = 0; i < EN_COSTS; i++) widen(&out->of[i], all[r].s[i], r, c->world_size);
    }
out:
    free(all);
    return status;
}

void en_account_text(const en_account_report *r, char *out, size_t size)
{
    int order[EN_COSTS];
    size_t used = 0;
    for (int i = 0; i < EN_COSTS; i++) {
        int at = i;
        for (; at > 0 && r->of[order[at - 1]].mean < r->of[i].mean; at--) order[at] = order[at - 1];
        order[at] = i;
    }
    out[0] = 0;
    for (int i = 0; i < EN_COSTS && used < size; i++) {
        const en_spread *s = &r->of[order[i]];
        const double percent = r->wall.mean > 0 ? 100 * s->mean / r->wall.mean : 0;
        if (percent < 0.05) continue;
        int n = snprintf(out + used, size - used, "%s%s %.1f%%", used ? ", " : "", en_cost_name[order[i]], percent);
        used += n > 0 ? (size_t)n : 0;
        if (used >= size || r->ranks == 1) continue;
        n = snprintf(out + used, size - used, " (%.3g to %.3g s)", s->low, s->high);
        used += n > 0 ? (size_t)n : 0;
    }
}

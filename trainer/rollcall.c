/* rollcall.c - the ranks' answers in one sum: flags add up, and each rank's time has a place of its own. */
#include "trainer/rollcall.h"
#include "trainer/sorted.h"

#include <stdlib.h>
#include <string.h>

en_status en_rollcall(en_comm *c, const en_answer *mine, double *room, en_roll *out)
{
    const int ranks = c->world_size;
    double *work = room + EN_ROLL_WORDS, *sorted = work + ranks;
    memset(room, 0, (size_t)(EN_ROLL_WORDS + ranks) * sizeof *room);
    room[0] = mine->stop, room[1] = mine->writing, room[2] = mine->save_again;
    work[c->rank] = mine->work_s;
    EN_TRY(c->ops->sum_f64(c, room, room, (size_t)(EN_ROLL_WORDS + ranks)), "calling the roll");
    *out = (en_roll){ .stop = room[0] > 0, .writing = room[1] > 0, .save_again = room[2] > 0 };
    for (int r = 1; r < ranks; r++)
        if (work[r] > work[out->slowest]) out->slowest = r;
    memcpy(sorted, work, (size_t)ranks * sizeof *sorted);
    en_sort(sorted, (size_t)ranks);
    out->straggler_s = sorted[ranks - 1] - sorted[(ranks - 1) / 2];
    return EN_OK;
}

bool en_straggler_step(en_straggler_watch *w, const en_roll *roll, double step_s, int *rank, double *lag_s, double *mean_step_s)
{
    if (++w->steps <= EN_STRAGGLER_SETTLING) return false;
    const int64_t in_window = (w->steps - EN_STRAGGLER_SETTLING - 1) % EN_STRAGGLER_WINDOW + 1;
    if (in_window == 1) w->times = 0, w->step_s = w->lag_s = 0, w->last = roll->slowest;
    w->times += roll->slowest == w->last;
    w->step_s += step_s / EN_STRAGGLER_WINDOW;
    w->lag_s += roll->straggler_s / EN_STRAGGLER_WINDOW;
    if (in_window < EN_STRAGGLER_WINDOW || w->times < EN_STRAGGLER_WINDOW * 9 / 10 || w->lag_s < 0.1 * w->step_s) return false;
    if (w->has_said && w->said == w->last) return false;
    w->has_said = true;
    *rank = w->said = w->last;
    *lag_s = w->lag_s;
    *mean_step_s = w->step_s;
    return true;
}

/* replay.c - the piece of a step that was fetched, on the device: recorded where the device can, from the second time on.
 *
 * The first time a piece of some shape comes, it is simply done: libraries measure and choose, communicators connect, which no
 * recording may contain.  The second time it is recorded, and replayed from then on.  Recording and replaying are collective
 * where sums over ranks are part of it (comm.h), so shapes are told apart by what is the same on all ranks: the images of the
 * piece on all ranks together decide how many are this rank's. */
#include "trainer/trainer.h"

static en_recording *recording_of(en_trainer *t, const en_piece *p)
{
    for (int i = 0; i < EN_RECORDINGS; i++) {
        en_recording *r = &t->recordings[i];
        if (!r->seen) *r = (en_recording){ .all = p->all, .slot = p->slot, .first = p->first, .last = p->last, .timed = p->timed };
        if (r->all == p->all && r->slot == p->slot && r->first == p->first && r->last == p->last && r->timed == p->timed) return r;
    }
    return NULL;
}

static en_status record(en_trainer *t, const en_piece *p, en_work_fn *work, void **graph)
{
    EN_TRY(t->be->ops->capture_begin(t->be), "recording");
    const en_status s = work(t, p);
    const en_status ended = t->be->ops->capture_end(t->be, graph);          /* also when work failed: the stream must come out of it */
    EN_TRY(s, "recording");
    EN_TRY(ended, "recording");
    return EN_OK;
}

en_status en_replay(en_trainer *t, en_work_fn *work)
{
    const struct en_backend_ops *ops = t->be->ops;
    const en_piece *p = &t->piece;
    en_recording *r = t->recording ? recording_of(t, p) : NULL;
    EN_TRY(ops->stage_ready(t->be, p->slot), "input");
    en_net_time_sums(t->net, p->timed);
    t->sums_timed = p->timed && (!t->recording || (r && r->seen > 0));
    if (!r || r->seen++ == 0) EN_TRY(work(t, p), "on the device");
    else {
        if (!r->graph) EN_TRY(record(t, p, work, &r->graph), "on the device");
        EN_TRY(ops->graph_launch(t->be, r->graph), "on the device");
    }
    EN_TRY(ops->stage_done(t->be, p->slot), "input");
    return EN_OK;
}

void en_replay_close(en_trainer *t)
{
    for (int i = 0; i < EN_RECORDINGS; i++) {
        if (t->recordings[i].graph) t->be->ops->graph_free(t->be, t->recordings[i].graph);
        t->recordings[i] = (en_recording){ 0 };
    }
}

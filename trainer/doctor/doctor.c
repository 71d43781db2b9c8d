/* doctor/doctor.c - `effnet doctor`: what this machine, or each host of a job, offers, and what stands in a run's way.
 *
 * Every rank looks around, the ranks try each other out, rank 0 gathers, judges and prints (doctor/doctor.h).  What would break a job makes
 * all leave with 1; a rank that does not answer, with 5. */
#include "trainer/doctor/doctor.h"

#include "comm/watch.h"
#include "trainer/commands.h"
#include "trainer/trainer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void en_doctor_nothing(en_doctor_facts *f)
{
    memset(f, 0, sizeof *f);                   /* padding too: ranks send bytes */
    f->processors = f->allowed_processors = f->allowed_cores = EN_UNKNOWN;
    f->cpu_quota = EN_UNKNOWN;
    f->memory_bytes = f->memory_available_bytes = f->memory_limit_bytes = f->shm_free_bytes = EN_UNKNOWN;
    f->disk_free_bytes = f->disk_free_files = f->program_bytes = f->plugin_bytes = f->packed_bytes = EN_UNKNOWN;
    f->open_files = f->open_files_hard = f->locked_bytes = EN_UNKNOWN;
    f->writable = f->flock_works = f->fcntl_works = f->shared = f->flock_excludes = f->fcntl_excludes = EN_UNKNOWN;
    f->data_state = f->sum_right = f->tensor_right = f->device_numa = EN_UNKNOWN;
    f->train_images = f->val_images = f->classes = EN_UNKNOWN;
}

/* Parameters, their averages and two optimizer slots; running statistics and their averages.  A file is a little more. */
static en_status size_checkpoints(const en_options *o, en_doctor_job *j)
{
    en_model *m = NULL;
    EN_TRY(en_model_from_options(o, 0, 1, &m), "sizing checkpoints");
    j->model = o->model;
    j->checkpoint_bytes = (int64_t)sizeof(float) * (4 * m->param_elems + 2 * m->stat_elems);
    j->checkpoints = o->keep + 2;              /* and the best, and the one being written */
    en_model_free(m);
    return EN_OK;
}

static int judge(const en_doctor_job *j, bool json)
{
    en_findings *w = malloc(sizeof *w);
    if (!w || !en_findings_open(w, j->ranks)) {
        free(w);
        return 1;
    }
    en_doctor_judge_job(j, w);
    en_doctor_judge_likeness(j, w);
    for (int r = 0; r < j->ranks; r++)
        if (en_doctor_leads(j->all, r)) en_doctor_judge_host(j, r, w);
    en_doctor_judge_binding(j, w);
    if (json) en_doctor_print_json(j, w);
    else en_doctor_print(j, w);
    const int musts = w->musts;
    en_findings_close(w);
    free(w);
    return musts;
}

static en_status look_together(en_comm *c, const en_options *o, en_doctor_facts *f)
{
    EN_TRY(en_doctor_folder(c, o->run, f), "--run");
    EN_TRY(en_doctor_data(c, o->data, f), "--data");
    EN_TRY(c->ops->barrier(c), "waiting for the slowest listing");
    EN_TRY(en_doctor_sums(c, f), "sums");
    en_doctor_transport(f);
    return EN_OK;
}

static en_status examine(en_comm *c, const en_options *o, en_doctor_facts *here, int *musts)
{
    en_status status = EN_OK;
    en_doctor_facts *all = NULL;
    en_doctor_job job = { .ranks = c->world_size, .hosts = c->nodes, .folder_asked = *o->run };
    EN_TRY_OUT(en_check_same_options(c, o), "comparing the options of the ranks");
    EN_TRY_OUT(en_agree(c, size_checkpoints(o, &job)), "--model");
    snprintf(here->host, sizeof here->host, "%s", c->host);
    here->launched = strcmp(c->name, "mpi") == 0;
    en_doctor_machine(here);
    en_doctor_program(here);
    EN_TRY_OUT(look_together(c, o, here), "looking around together");
    if (c->rank == 0 && !(all = calloc((size_t)c->world_size, sizeof *all))) {           /* the others are on their way into the gather */
        en_report_error(c, en_raise(EN_ENOMEM, __FILE__, __LINE__, __func__, "no memory for the facts of %d ranks", c->world_size));
        en_comm_abort(c, en_status_exit_code(EN_ENOMEM));
    }
    EN_TRY_OUT(c->ops->gather(c, here, sizeof *here, all, 0), "gathering what the ranks see");
    job.all = all;
    if (c->rank == 0) *musts = judge(&job, o->json);
    EN_TRY_OUT(c->ops->broadcast(c, musts, sizeof *musts, 0), "telling the others");
out:
    free(all);
    return status;
}

/* Nothing here takes two minutes, but listing images may. */
static void set_limits(const en_options *o)
{
    en_watch_limits l = { .advice = "take that host out of the job, or look there at what is named, and try again" };
    for (int i = 0; i < EN_SECTIONS; i++) l.limit_s[i] = *o->data ? 1800 : 120;
    en_watch_keep(&l);
}

en_status en_command_doctor(const en_options *o)
{
    en_comm *c = NULL;
    int musts = 0;
    en_doctor_facts *here = malloc(sizeof *here);
    en_status status = EN_OK;
    EN_REQUIRE(here, EN_ENOMEM, "no memory");
    en_doctor_nothing(here);
    set_limits(o);
    EN_TRY_OUT(en_doctor_reach(here), "reaching the other ranks");
    EN_TRY_OUT(en_comm_open(&c), "joining the other ranks");
    status = examine(c, o, here, &musts);
    if (status == EN_EPEER) en_report_error(c, status), en_comm_abort(c, en_status_exit_code(status));
    if (status != EN_OK) en_report_error(c, status);
    if (status == EN_OK && musts > 0) {
        en_report_hush();                      /* the findings have said it */
        status = EN_ENOTSUP;
    }
    fflush(stdout);
    en_comm_close(c);
out:
    free(here);
    return status;
}

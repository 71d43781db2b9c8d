/* test_checkpoint.c - what goes in comes out; what the file looks like to others; which file is taken and which may go. */
#include "test_checkpoint.h"

#include <hdf5.h>

#include "trainer/crc32c.h"

static en_model *real_model(void)
{
    const en_model_row *row;
    en_model *m;
    OK(en_model_row_find("b0", &row));
    OK(en_model_build(row, &(en_model_overrides){ .width = 0.25, .classes = 10, .dropout = -1, .drop_path = -1 }, 16, &m));
    return m;
}

/* ---- one file -------------------------------------------------------------------------------------------------------- */

static void crc32c_has_its_published_values(void **state)
{
    (void)state;                                               /* RFC 3720, B.4                                          */
    uint8_t bytes[32];
    assert_int_equal(en_crc32c(0, "123456789", 9), 0xE3069283);
    memset(bytes, 0, 32);
    assert_int_equal(en_crc32c(0, bytes, 32), 0x8A9136AA);
    memset(bytes, 255, 32);
    assert_int_equal(en_crc32c(0, bytes, 32), 0x62A8AB43);
    for (int i = 0; i < 32; i++) bytes[i] = (uint8_t)i;
    assert_int_equal(en_crc32c(0, bytes, 32), 0x46DD794E);
}

static void crc32c_is_the_same_by_instruction_by_table_and_in_parts(void **state)
{
    (void)state;
    uint8_t bytes[300];
    for (int i = 0; i < 300; i++) bytes[i] = (uint8_t)mixed(1, (uint64_t)i);
    for (size_t from = 0; from < 9; from++)
        for (size_t n = 0; n + from <= 300; n += n < 40 ? 1 : 13) {
            const uint32_t whole = en_crc32c(0, bytes + from, n);
            assert_int_equal(whole, en_crc32c_table(0, bytes + from, n));
            assert_int_equal(whole, en_crc32c(en_crc32c_table(0, bytes + from, n / 3), bytes + from + n / 3, n - n / 3));
        }
}

static void round_trip(const en_model *m, bool ema, int n_slots)
{
    en_snapshot s, got;
    OK(en_snapshot_alloc(m, n_slots, slots, ema, &s));
    OK(en_snapshot_alloc(m, n_slots, slots, ema, &got));
    fill(&s, 77);
    fill(&got, 5);                                             /* every element must be overwritten                     */
    for (int i = 0; i < m->n_tensors; i++) {                   /* what lies between tensors is nobody's: keep it zero   */
        memset(got.params, 0, (size_t)m->param_elems * 4);
        memset(got.stats, 0, (size_t)m->stat_elems * 4);
        if (ema) memset(got.ema_params, 0, (size_t)m->param_elems * 4), memset(got.ema_stats, 0, (size_t)m->stat_elems * 4);
        for (int k = 0; k < n_slots; k++) memset(got.slot[k], 0, (size_t)m->param_elems * 4);
    }
    for (int i = 0; i < m->n_tensors; i++) {                   /* and padding inside them garbage, to be zeroed         */
        const en_tensor *t = &m->tensors[i];
        fill_arena((t->arena == EN_ARENA_PARAMS ? got.params : got.stats) + t->offset, t->elems, 3);
        if (ema) fill_arena((t->arena == EN_ARENA_PARAMS ? got.ema_params : got.ema_stats) + t->offset, t->elems, 4);
        for (int k = 0; k < n_slots && t->arena == EN_ARENA_PARAMS; k++) fill_arena(got.slot[k] + t->offset, t->elems, 5);
    }
    OK(en_checkpoint_write(path("a.h5"), &s));
    assert_false(exists(path("a.h5.tmp")));
    OK(en_checkpoint_read(path("a.h5"), &got, false));
    same_snapshot(&got, &s);
    en_snapshot_free(&s);
    en_snapshot_free(&got);
}

static void bits_come_back_and_padding_becomes_zero(void **state)
{
    (void)state;
    const en_model m = tiny_model();
    round_trip(&m, true, 2);
    round_trip(&m, false, 0);
    round_trip(&m, false, 1);
    en_model *real = real_model();
    round_trip(real, true, 2);
    en_model_free(real);
}

static void write_tiny(const char *p, const en_model *m, int64_t step)
{
    en_snapshot s;
    OK(en_snapshot_alloc(m, 2, slots, true, &s));
    fill(&s, step);
    s.class_names = tiny_classes;
    s.options = "lr=0.016\nmodel=b0\n";
    OK(en_checkpoint_write(p, &s));
    en_snapshot_free(&s);
}

static void inspect_tells_everything_that_a_resume_needs(void **state)
{
    (void)state;
    const en_model m = tiny_model();
    en_checkpoint_info i;
    en_snapshot s;
    OK(en_snapshot_alloc(&m, 0, NULL, false, &s));
    fill(&s, 77);
    write_tiny(path("a.h5"), &m, 77);
    for (int verify = 0; verify < 2; verify++) {
        OK(en_checkpoint_inspect(path("a.h5"), verify, &i));
        same_state(&i.state, &s.state);
        assert_string_equal(i.model, "efficientnet_tiny");
        assert_true(i.width == 1 && i.depth == 1.1 && i.dropout == 0.2f && i.drop_path == 0.25f);
        assert_int_equal(i.resolution, 32);
        assert_int_equal(i.classes, 3);
        assert_true(i.has_ema);
        assert_int_equal(i.n_slots, 2);
        for (int k = 0; k < 3; k++) assert_string_equal(i.class_names[k], tiny_classes[k]);
        assert_string_equal(i.options, "lr=0.016\nmodel=b0\n");
        assert_string_not_equal(i.program_version, "");
        en_checkpoint_info_free(&i);
    }
    OK(en_checkpoint_write(path("b.h5"), &s));                 /* none of what may be left out                          */
    OK(en_checkpoint_inspect(path("b.h5"), true, &i));
    assert_null(i.class_names);
    assert_null(i.options);
    assert_false(i.has_ema);
    assert_int_equal(i.n_slots, 0);
    en_checkpoint_info_free(&i);
    en_snapshot_free(&s);
}

static void options_may_be_long(void **state)
{
    (void)state;                                               /* HDF5's object headers hold messages of up to 64 KiB   */
    const en_model m = tiny_model();
    en_snapshot s;
    char *text = malloc(300001);
    for (int i = 0; i < 300000; i++) text[i] = "ab=c\n"[i % 5];
    text[300000] = '\0';
    OK(en_snapshot_alloc(&m, 0, NULL, false, &s));
    s.options = text;
    OK(en_checkpoint_write(path("a.h5"), &s));
    en_checkpoint_info i;
    OK(en_checkpoint_inspect(path("a.h5"), true, &i));
    assert_string_equal(i.options, text);
    en_checkpoint_info_free(&i);
    en_snapshot_free(&s);
    free(text);
}

static void equal_states_give_equal_bytes(void **state)
{
    (void)state;
    const en_model m = tiny_model();
    size_t n, n2;
    write_tiny(path("a.h5"), &m, 9);
    sleep(1);
    write_tiny(path("b.h5"), &m, 9);
    char *a = slurp(path("a.h5"), &n), *b = slurp(path("b.h5"), &n2);
    assert_int_equal(n, n2);
    assert_memory_equal(a, b, n);
    free(a);
    free(b);
}

/* Another program's view: /GROUP lists timm's keys in timm's order, float32, logical shapes and order of elements. */
static void group_is_a_state_dict(hid_t file, const char *group, const en_model *m, const float *params, const float *stats)
{
    const hid_t g = H5Gopen2(file, group, H5P_DEFAULT);
    hsize_t at = 0;
    assert_true(g >= 0);
    for (int i = 0; i < m->n_tensors; i++) {
        const en_tensor *t = &m->tensors[i];
        if (t->arena == EN_ARENA_STATS && !stats) continue;
        char name[256];
        assert_true(H5Lget_name_by_idx(g, ".", H5_INDEX_CRT_ORDER, H5_ITER_INC, at++, name, sizeof name, H5P_DEFAULT) > 0);
        assert_string_equal(name, t->name);
        const hid_t d = H5Dopen2(g, name, H5P_DEFAULT), space = H5Dget_space(d), type = H5Dget_type(d);
        hsize_t dims[8];
        assert_int_equal(H5Sget_simple_extent_dims(space, dims, NULL), t->ndim);
        for (int k = 0; k < t->ndim; k++) assert_int_equal(dims[k], t->shape[k]);
        assert_true(H5Tequal(type, H5T_IEEE_F32LE) > 0);
        const int64_t n = en_tensor_count(t);
        float *got = malloc((size_t)n * 4), *want = malloc((size_t)n * 4);
        assert_true(H5Dread(d, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, got) >= 0);
        const float *arena = t->arena == EN_ARENA_PARAMS ? params : stats;
        int64_t e = 0, s[4] = { 1, 1, 1, 1 };                  /* by the definition in model.h, not by en_tensor_gather */
        for (int k = 0; k < t->ndim; k++) s[k] = t->shape[k];
        for (int64_t a = 0; a < s[0]; a++)
            for (int64_t b = 0; b < s[1]; b++)
                for (int64_t c = 0; c < s[2]; c++)
                    for (int64_t q = 0; q < s[3]; q++)
                        want[e++] = arena[t->offset + a * t->stride[0] + b * t->stride[1] + c * t->stride[2] + q * t->stride[3]];
        assert_memory_equal(got, want, (size_t)n * 4);
        free(got);
        free(want);
        H5Tclose(type);
        H5Sclose(space);
        H5Dclose(d);
    }
    H5G_info_t info;
    assert_true(H5Gget_info(g, &info) >= 0);
    assert_int_equal(info.nlinks, at);
    H5Gclose(g);
}

static void others_see_state_dicts_in_timms_names_order_and_shapes(void **state)
{
    (void)state;
    en_model *m = real_model();
    en_snapshot s;
    OK(en_snapshot_alloc(m, 2, slots, true, &s));
    fill(&s, 3);
    OK(en_checkpoint_write(path("a.h5"), &s));
    const hid_t file = H5Fopen(path("a.h5"), H5F_ACC_RDONLY, H5P_DEFAULT);
    assert_true(file >= 0);
    group_is_a_state_dict(file, "/model", m, s.params, s.stats);
    group_is_a_state_dict(file, "/ema", m, s.ema_params, s.ema_stats);
    group_is_a_state_dict(file, "/optimizer/ms", m, s.slot[0], NULL);
    group_is_a_state_dict(file, "/optimizer/mom", m, s.slot[1], NULL);
    H5Fclose(file);
    en_snapshot_free(&s);
    en_model_free(m);
}

static void reading_wants_the_same_model(void **state)
{
    (void)state;
    const en_model m = tiny_model();
    write_tiny(path("a.h5"), &m, 1);
    en_tensor tensors[6];
    en_model other = m;
    en_snapshot s;
    other.tensors = tensors;

    memcpy(tensors, m.tensors, sizeof tensors);
    snprintf(tensors[4].name, sizeof tensors[4].name, "head.weight");
    OK(en_snapshot_alloc(&other, 0, NULL, false, &s));
    REFUSED(EN_EDATA, en_checkpoint_read(path("a.h5"), &s, false), "lacks /model/head.weight");

    memcpy(tensors, m.tensors, sizeof tensors);
    tensors[4].shape[0] = 2;
    REFUSED(EN_EDATA, en_checkpoint_read(path("a.h5"), &s, false), "has /model/classifier.weight as (3,5), and efficientnet_tiny wants (2,5)");

    memcpy(tensors, m.tensors, sizeof tensors);
    other.n_tensors = 5;                                       /* all of its tensors are there, and one more            */
    REFUSED(EN_EDATA, en_checkpoint_read(path("a.h5"), &s, false), "has 6 tensors in /model, and efficientnet_tiny has 5");
    en_snapshot_free(&s);
}

static void slots_and_averages_that_are_not_there(void **state)
{
    (void)state;
    const en_model m = tiny_model();
    en_snapshot bare, s;
    OK(en_snapshot_alloc(&m, 1, slots, false, &bare));
    fill(&bare, 4);
    OK(en_checkpoint_write(path("a.h5"), &bare));
    OK(en_snapshot_alloc(&m, 2, slots, false, &s));
    REFUSED(EN_EDATA, en_checkpoint_read(path("a.h5"), &s, false), "lacks /optimizer/mom");
    OK(en_checkpoint_read(path("a.h5"), &s, true));            /* weights alone: slots are not asked for                */
    same_arena(&m, EN_ARENA_PARAMS, s.params, bare.params, "params");
    en_snapshot_free(&s);

    OK(en_snapshot_alloc(&m, 1, slots, true, &s));
    REFUSED(EN_EDATA, en_checkpoint_read(path("a.h5"), &s, false), "no moving average");
    OK(en_checkpoint_read(path("a.h5"), &s, true));            /* an average begins as what it averages                 */
    same_arena(&m, EN_ARENA_PARAMS, s.ema_params, bare.params, "ema_params");
    same_arena(&m, EN_ARENA_STATS, s.ema_stats, bare.stats, "ema_stats");
    en_snapshot_free(&s);

    OK(en_snapshot_alloc(&m, 0, NULL, false, &s));             /* and what is not asked for does no harm                */
    write_tiny(path("b.h5"), &m, 4);
    OK(en_checkpoint_read(path("b.h5"), &s, false));
    same_arena(&m, EN_ARENA_PARAMS, s.params, bare.params, "params");
    en_snapshot_free(&s);
    en_snapshot_free(&bare);
}

static void a_state_that_would_be_refused_later_is_not_written(void **state)
{
    (void)state;
    const en_model m = tiny_model();
    en_snapshot s;
    write_tiny(path("a.h5"), &m, 1);
    OK(en_snapshot_alloc(&m, 2, slots, true, &s));
    fill(&s, 2);
    s.state.seconds = 0.0 / 0.0;
    REFUSED(EN_EIO, en_checkpoint_write(path("a.h5"), &s), "attribute seconds");
    assert_false(exists(path("a.h5.tmp")));
    holds_step(path("a.h5"), &m, 2, 1);
    fill(&s, 2);
    s.slot_name[1] = "a/b";
    REFUSED(EN_EINVAL, en_checkpoint_write(path("a.h5"), &s), "slot 1");
    en_snapshot_free(&s);
}

/* ---- a folder --------------------------------------------------------------------------------------------------------- */

static char told[16][512];
static int n_told;
static void tell(const char *p, const char *why) { snprintf(told[n_told++ % 16], 512, "%s %s", p, why); }

static void cut(const char *p) { assert_int_equal(truncate(p, 3000), 0); }

static void nothing_there_is_no_error(void **state)
{
    (void)state;
    char newest[4096] = "x";
    n_told = 0;
    OK(en_checkpoint_newest(path("no-such-folder"), newest, tell));
    assert_string_equal(newest, "");
    OK(en_checkpoint_newest(folder, newest, tell));
    assert_string_equal(newest, "");
    OK(en_checkpoint_prune(path("no-such-folder"), 1));
    assert_int_equal(n_told, 0);
    spill(path("file"), "x", 1);
    REFUSED(EN_EIO, en_checkpoint_newest(path("file"), newest, tell), "Not a directory");
}

static void the_newest_is_by_number_and_whole(void **state)
{
    (void)state;
    const en_model m = tiny_model();
    char newest[4096];
    write_tiny(step_path(100000000), &m, 100000000);           /* nine digits sort after eight                          */
    write_tiny(step_path(99999999), &m, 99999999);
    write_tiny(step_path(20), &m, 20);
    write_tiny(path("best.h5"), &m, 5);
    spill(path("step-300000000.h5.tmp"), "x", 1);              /* not names of finished files                           */
    spill(path("step-.h5"), "x", 1);
    spill(path("step-400000000.h5~"), "x", 1);
    spill(path("my-step-500000000.h5"), "x", 1);
    n_told = 0;
    OK(en_checkpoint_newest(folder, newest, tell));
    assert_string_equal(newest, step_path(100000000));
    assert_int_equal(n_told, 0);

    cut(step_path(100000000));
    assert_int_equal(mkdir(step_path(200000000), 0777), 0);
    OK(en_checkpoint_newest(folder, newest, tell));
    assert_string_equal(newest, step_path(99999999));
    assert_int_equal(n_told, 2);
    assert_non_null(strstr(told[0], "is a folder"));
    assert_non_null(strstr(told[1], "is truncated: 3000 of "));
    OK(en_checkpoint_newest(folder, newest, NULL));

    cut(step_path(99999999));
    cut(step_path(20));
    REFUSED(EN_EDATA, en_checkpoint_newest(folder, newest, tell), "none of the 4 checkpoints in ");
    assert_string_equal(newest, "");
}

static void retention_keeps_whole_files_and_what_is_not_ours(void **state)
{
    (void)state;
    const en_model m = tiny_model();
    for (int step = 1; step <= 8; step++) write_tiny(step_path(step), &m, step);
    write_tiny(path("best.h5"), &m, 1);
    write_tiny(path("mine.h5"), &m, 1);
    spill(path("step-00000003.h5.tmp"), "x", 1);
    spill(path("best.h5.tmp"), "x", 1);
    spill(path("notes.tmp"), "x", 1);
    const hid_t foreign = H5Fcreate(step_path(0), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);   /* our name, not our file */
    H5Fclose(foreign);
    cut(step_path(7));                                         /* does not count; newer than what is kept: stays        */
    cut(step_path(2));                                         /* older: goes                                           */
    OK(en_checkpoint_prune(folder, 3));
    const bool stays[] = { true, false, false, false, false, true, true, true, true };
    for (int step = 0; step <= 8; step++)
        if (exists(step_path(step)) != stays[step]) fail_msg("step %d %s", step, stays[step] ? "is gone" : "is still there");
    assert_true(exists(path("best.h5")) && exists(path("mine.h5")) && exists(path("notes.tmp")));
    assert_false(exists(path("step-00000003.h5.tmp")));
    assert_false(exists(path("best.h5.tmp")));

    cut(step_path(8));
    cut(step_path(6));                                         /* one whole left, and three are wanted: nothing goes    */
    OK(en_checkpoint_prune(folder, 3));
    assert_true(exists(step_path(5)));
    OK(en_checkpoint_prune(folder, 1));
    assert_true(exists(step_path(5)) && exists(step_path(6)) && exists(step_path(0)));
    REFUSED(EN_EUSAGE, en_checkpoint_prune(folder, 0), "--keep 0");
}

#define IN_A_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(crc32c_has_its_published_values),
        cmocka_unit_test(crc32c_is_the_same_by_instruction_by_table_and_in_parts),
        IN_A_FOLDER(bits_come_back_and_padding_becomes_zero),
        IN_A_FOLDER(inspect_tells_everything_that_a_resume_needs),
        IN_A_FOLDER(options_may_be_long),
        IN_A_FOLDER(equal_states_give_equal_bytes),
        IN_A_FOLDER(others_see_state_dicts_in_timms_names_order_and_shapes),
        IN_A_FOLDER(reading_wants_the_same_model),
        IN_A_FOLDER(slots_and_averages_that_are_not_there),
        IN_A_FOLDER(a_state_that_would_be_refused_later_is_not_written),
        IN_A_FOLDER(nothing_there_is_no_error),
        IN_A_FOLDER(the_newest_is_by_number_and_whole),
        IN_A_FOLDER(retention_keeps_whole_files_and_what_is_not_ours),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* test_kernels_choice.c - which algorithm computes a matrix product, and what that does to the bits: from one process to the
 * next with a file of choices, from one engine to the next without, and inside a recording.  Each process is a child. */
#include "fixture.h"
#include "kernels/plugin.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SHAPES = 12, CI = 40, CO = 104 };

static int64_t rows_of(int shape) { return 5 + 7 * shape; }

/* y of every shape, hashed, by a backend opened here */
static bool products(const char *choices, bool recorded, uint64_t *hash)
{
    en_backend *be = NULL;
    bool fine = en_cuda_open(&(en_backend_config){ .precision = EN_PRECISION_F32 }, &be) == EN_OK && (!choices || en_cuda_keep_choices(be, choices) == EN_OK);
    *hash = 0xcbf29ce484222325ull;
    for (int s = 0; fine && s < SHAPES; s++) {
        const int64_t rows = rows_of(s);
        static float x[200 * CI], w[CI * CO], y[200 * CO];
        for (int64_t i = 0; i < rows * CI; i++) x[i] = (float)uniform();
        for (int64_t i = 0; i < CI * CO; i++) w[i] = (float)uniform();
        void *x_dev = NULL, *w_dev = NULL, *y_dev = NULL, *graph = NULL;
        const en_conv_geom g = { .n = 1, .h = rows, .w = 1, .c = CI, .oh = rows, .ow = 1, .oc = CO };
        const size_t bx = (size_t)(rows * CI) * sizeof *x, by = (size_t)(rows * CO) * sizeof *y;
        fine = be->ops->alloc(be, bx, &x_dev) == EN_OK && be->ops->alloc(be, sizeof w, &w_dev) == EN_OK && be->ops->alloc(be, by, &y_dev) == EN_OK &&
               be->ops->upload(be, x_dev, x, bx) == EN_OK && be->ops->upload(be, w_dev, w, sizeof w) == EN_OK && be->ops->reserve(be, &g) == EN_OK &&
               (!recorded || be->ops->capture_begin(be) == EN_OK) &&
               be->ops->pointwise_forward(be, rows, CI, CO, x_dev, w_dev, y_dev, NULL) == EN_OK &&
               (!recorded || (be->ops->capture_end(be, &graph) == EN_OK && be->ops->graph_launch(be, graph) == EN_OK)) &&
               be->ops->download(be, y, y_dev, by) == EN_OK;
        for (size_t i = 0; i < by / 4; i++) {
            uint32_t word;
            memcpy(&word, y + i, 4);
            *hash = (*hash ^ word) * 0x100000001B3ull;
        }
        if (recorded) be->ops->graph_free(be, graph);
        be->ops->free(be, x_dev), be->ops->free(be, w_dev), be->ops->free(be, y_dev);
    }
    if (!fine) fprintf(stderr, "%s", en_error_text());
    if (be) en_backend_close(be);
    return fine;
}

/* The same in a process of its own, once or, `again`, twice there with the same bits; 0: it failed. */
static uint64_t in_child(const char *choices, const char *tune, bool recorded_first, bool again)
{
    int ends[2];
    uint64_t hash = 0;
    if (pipe(ends)) fail_msg("pipe");
    const pid_t child = fork();
    if (child == 0) {
        uint64_t second = 0;
        if (tune) setenv("EN_GEMM_TUNE", tune, 1);
        else unsetenv("EN_GEMM_TUNE");
        problem(false, "products");
        bool fine = products(choices, recorded_first, &hash);
        if (fine && again) {
            problem(false, "products");                         /* the same numbers */
            fine = products(choices, false, &second) && second == hash;
            if (!fine) fprintf(stderr, "the second engine has other bits\n");
        }
        fine = fine && write(ends[1], &hash, sizeof hash) == (ssize_t)sizeof hash;
        _exit(fine ? 0 : 1);
    }
    int status = 0;
    if (child < 0 || read(ends[0], &hash, sizeof hash) != (ssize_t)sizeof hash) hash = 0;
    close(ends[0]), close(ends[1]);
    return child > 0 && waitpid(child, &status, 0) == child && status == 0 ? hash : 0;
}

static char folder[64];
static const char *file_of(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static int lines_of(const char *path)
{
    FILE *f = fopen(path, "r");
    char line[1024];
    int n = 0;
    while (f && fgets(line, sizeof line, f)) n += strstr(line, " end\n") != NULL;
    if (f) fclose(f);
    return n;
}

/* Asked in a child: a process that has looked for devices has opened the driver, and its children cannot. */
static void skip_without_a_device(void)
{
    static int missing = -1;
    if (missing < 0) {
        fflush(NULL);
        const pid_t child = fork();
        if (child == 0) {
            char why[256] = "";
            const bool found = en_cuda_probe(why, sizeof why);
            if (!found) print_message("# cuda: SKIPPED, %s\n", why);
            fflush(NULL);
            _exit(found ? 0 : 1);
        }
        int status = 1;
        missing = child < 0 || waitpid(child, &status, 0) != child || status != 0;
    }
    if (missing) skip();
}

static void the_first_proposal_gives_the_same_bits_in_every_process(void **state)
{
    (void)state;
    skip_without_a_device();
    const uint64_t first = in_child(NULL, "0", false, true);
    assert_int_not_equal(first, 0);
    for (int k = 0; k < 3; k++) assert_int_equal(in_child(NULL, "0", false, false), first);
}

static void what_one_engine_has_measured_holds_for_the_next(void **state)
{
    (void)state;
    skip_without_a_device();
    for (int k = 0; k < 4; k++) assert_int_not_equal(in_child(NULL, NULL, false, true), 0);
}

static void a_product_met_in_a_recording_is_computed_alike_afterwards(void **state)
{
    (void)state;
    skip_without_a_device();
    for (int k = 0; k < 2; k++) assert_int_not_equal(in_child(NULL, NULL, true, true), 0);
}

static void a_file_of_choices_gives_the_next_process_the_same_bits(void **state)
{
    (void)state;
    skip_without_a_device();
    const char *path = file_of("kept");
    const uint64_t first = in_child(path, NULL, false, true);
    assert_int_not_equal(first, 0);
    assert_int_equal(lines_of(path), SHAPES);
    for (int k = 0; k < 4; k++) assert_int_equal(in_child(path, NULL, false, false), first);
    assert_int_equal(lines_of(path), SHAPES);
}

static void a_file_that_a_crash_cut_short_is_gone_on_with(void **state)
{
    (void)state;
    skip_without_a_device();
    const char *path = file_of("cut");
    assert_int_not_equal(in_child(path, NULL, false, false), 0);
    FILE *f = fopen(path, "r+");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    assert_int_equal(ftruncate(fileno(f), ftell(f) - 30), 0);
    fclose(f);
    assert_int_equal(lines_of(path), SHAPES - 1);
    const uint64_t after = in_child(path, NULL, false, false);
    assert_int_not_equal(after, 0);
    assert_int_equal(lines_of(path), SHAPES);
    assert_int_equal(in_child(path, NULL, false, false), after);
}

static void a_file_of_another_device_is_begun_afresh(void **state)
{
    (void)state;
    skip_without_a_device();
    const char *path = file_of("other");
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, "effnet matrix products 1, cuBLASLt 1, another device\n5 104 40 40 104 104 0 0 0 0 0 0 1 256 256 256 256 256 1 2 3 4 5 6 7 8 end\n");
    fclose(f);
    const uint64_t hash = in_child(path, NULL, false, false);
    assert_int_not_equal(hash, 0);
    assert_int_equal(lines_of(path), SHAPES);
    assert_int_equal(in_child(path, NULL, false, false), hash);
}

static void a_file_that_cannot_be_written_is_named(void **state)
{
    (void)state;
    skip_without_a_device();
    en_backend *be = NULL;
    assert_int_equal(en_cuda_open(&(en_backend_config){ .precision = EN_PRECISION_F32 }, &be), EN_OK);
    assert_int_equal(en_cuda_keep_choices(be, file_of("no/such/folder")), EN_EIO);
    assert_non_null(strstr(en_error_text(), "no/such/folder"));
    en_error_clear();
    assert_int_equal(en_cuda_keep_choices(be, NULL), EN_OK);
    en_backend_close(be);
}

static int make_folder(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/en_choice_XXXXXX", tmp && strlen(tmp) < 40 ? tmp : "/tmp");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    static const char *const names[] = { "kept", "cut", "other" };
    (void)state;
    for (int k = 0; k < 3; k++) (void)unlink(file_of(names[k]));
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_proposal_gives_the_same_bits_in_every_process),
        cmocka_unit_test(what_one_engine_has_measured_holds_for_the_next),
        cmocka_unit_test(a_product_met_in_a_recording_is_computed_alike_afterwards),
        cmocka_unit_test(a_file_of_choices_gives_the_next_process_the_same_bits),
        cmocka_unit_test(a_file_that_a_crash_cut_short_is_gone_on_with),
        cmocka_unit_test(a_file_of_another_device_is_begun_afresh),
        cmocka_unit_test(a_file_that_cannot_be_written_is_named),               /* opens a device here: the last */
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}

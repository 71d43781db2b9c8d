/* test_safetensors.c - the reader of safetensors files against files by anybody, the writer against the format. */
#include "test_checkpoint.h"

#include <math.h>

#include "trainer/exchange.h"

/* Writes a header and `data` bytes of values after it; length < 0: the header's own. */
static const char *file_of(const char *header, size_t data, int64_t length)
{
    const char *p = path("a.safetensors");
    FILE *f = fopen(p, "wb");
    assert_non_null(f);
    const uint64_t n = length < 0 ? strlen(header) : (uint64_t)length;
    for (int i = 0; i < 8; i++) fputc((int)(n >> 8 * i & 0xff), f);
    fputs(header, f);
    for (size_t i = 0; i < data; i++) fputc((int)(i & 0x3f), f);
    assert_int_equal(fclose(f), 0);
    return p;
}

static void refused(const char *header, size_t data, int64_t length, const char *part)
{
    en_safetensors *f = (en_safetensors *)1;
    REFUSED(EN_EDATA, en_safetensors_open(file_of(header, data, length), &f), part);
    assert_null(f);
    if (!strstr(en_error_message(), "a.safetensors")) fail_msg("the file is not named: %s", en_error_message());
}

#define T(name, type, shape, from, to) "\"" name "\":{\"dtype\":\"" type "\",\"shape\":[" shape "],\"data_offsets\":[" #from "," #to "]}"

/* ---- hostile files ----------------------------------------------------------------------------------------------------- */

static void lengths_are_compared_with_the_file(void **state)
{
    (void)state;
    en_safetensors *f;
    refused("", 0, 0, "too short");
    refused("{}", 0, 3, "has 10 bytes and claims a header of 3");
    refused("{}      ", 0, INT64_MAX, "claims a header of 9223372036854775807");
    refused("{}      ", 0, 100000001, "claims a header of 100000001");
    refused("{}      ", 0, 1, "claims a header of 1");
    REFUSED(EN_EDATA, en_safetensors_open(path("absent"), &f), "cannot be opened: No such file");
    REFUSED(EN_EDATA, en_safetensors_open(folder, &f), "is a folder");
    REFUSED(EN_EDATA, en_safetensors_open("/dev/null", &f), "is a device or a pipe");
    FILE *zip = fopen(path("weights.pt"), "wb");
    assert_non_null(zip);
    fputs("PK\3\4 and more of it", zip);
    fclose(zip);
    REFUSED(EN_EDATA, en_safetensors_open(path("weights.pt"), &f), "is a zip file, as torch.save makes them");
}

static void headers_are_read_strictly(void **state)
{
    (void)state;
    static const struct { const char *header, *part; } cases[] = {
        { "[]", "'{' is missing" }, { "{ ", "a text in quotes is missing" }, { "{}x", "more follows after the end" }, { "{\"a\"}", "':' is missing" },
        { "{\"a", "a text does not end" }, { "{\"a\\", "a text does not end" }, { "{\"\\x\":1}", "an escape that JSON does not have" },
        { "{\"\\u00\":1}", "\\u without four" }, { "{\"\\u0", "ends within \\u" }, { "{\"\\u0000\":1}", "has a 0 in it" }, { "{\"\\ud800\":1}", "stands alone" },
        { "{\"\\udc00\":1}", "stands alone" }, { "{\"\\ud800\\u0041\":1}", "stands alone" }, { "{\"a\nb\":1}", "a control character" },
        { "{\"a\\nb\":1}", "name of a tensor has a control character" }, { "{\"a\":1}", "'{' is missing" }, { "{\"a\":{}}", "a text in quotes is missing" },
        { "{\"a\":{\"dtype\":\"F32\"}}", "a lacks its shape" }, { "{\"a\":{\"shape\":[]}}", "a lacks its dtype" },
        { "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F16\"}}", "a says one thing twice" }, { "{\"a\":{\"strides\":[1]}}", "a has more than" },
        { "{\"a\":{\"dtype\":\"F33\"}}", "a has a type that is not known, 'F33'" }, { "{\"a\":{\"dtype\":\"\\u001b[31m\"}}", "a type that is not known, '?'" },
        { "{\"a\":{\"dtype\":4}}", "a text in quotes" }, { "{" T("a", "F32", "-1", 0, 0) "}", "not negative is missing" },
        { "{" T("a", "F32", "1.0", 0, 4) "}", "a number is not whole" }, { "{" T("a", "F32", "1e2", 0, 4) "}", "a number is not whole" },
        { "{" T("a", "F32", "01", 0, 4) "}", "a number begins with 0" }, { "{" T("a", "F32", "9223372036854775808", 0, 4) "}", "a number is too large" },
        { "{" T("a", "F32", "1,1,1,1,1,1,1,1,1", 0, 4) "}", "a has more than 8 dimensions" }, { "{" T("a", "F32", "4611686018427387904,4", 0, 0) "}", "overflows" },
        { "{" T("a", "F32", "4611686018427387904", 0, 0) "}", "overflows" }, { "{" T("a", "F32", "1", 0, 4) ",}", "a text in quotes is missing" },
        { "{\"__metadata__\":{\"a\":1}}", "a text in quotes" }, { "{\"__metadata__\":{},\"__metadata__\":{}}", "__metadata__ twice" },
        { "{\"__metadata__\":{\"a\":\"b\",}}", "a text in quotes" }, { "{\"__metadata__\":{\"a\":{}}}", "a text in quotes" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) refused(cases[i].header, 4, -1, cases[i].part);
}

static void places_are_compared_with_each_other(void **state)
{
    (void)state;
    refused("{" T("a", "F32", "2", 0, 8) "}", 4, -1, "only 4 bytes of values are there: the file is cut short");
    refused("{" T("a", "F32", "2", 8, 0) "}", 8, -1, "a ends at 0, before it begins at 8");
    refused("{" T("a", "F32", "2", 0, 4) "}", 4, -1, "a has 4 bytes, and its shape and type want 8");
    refused("{" T("a", "F16", "2", 0, 8) "}", 8, -1, "a has 8 bytes, and its shape and type want 4");
    refused("{" T("a", "F32", "2", 0, 9223372036854775807) "}", 8, -1, "only 8 bytes");
    refused("{" T("a", "F32", "2", 0, 8) "," T("b", "F32", "1", 4, 8) "}", 8, -1, "b overlaps a");
    refused("{" T("a", "F32", "1", 0, 4) "," T("b", "F32", "1", 0, 4) "}", 4, -1, "overlaps");
    refused("{" T("a", "F32", "1", 0, 4) "," T("b", "F32", "1", 8, 12) "}", 12, -1, "4 bytes before b belong to no tensor");
    refused("{" T("a", "F32", "1", 4, 8) "}", 8, -1, "4 bytes before a belong to no tensor");
    refused("{" T("a", "F32", "1", 0, 4) "}", 8, -1, "4 bytes at its end belong to no tensor");
    refused("{}", 1, -1, "1 bytes at its end belong to no tensor");
    refused("{" T("a", "F32", "1", 0, 4) "," T("a", "F32", "1", 4, 8) "}", 8, -1, "has a twice");
    refused("{" T("a", "F32", "0", 0, 0) "," T("a", "F32", "0,5", 0, 0) "}", 0, -1, "has a twice");
}

/* ---- sound files ------------------------------------------------------------------------------------------------------- */

static void sound_files_are_read_in_any_order(void **state)
{
    (void)state;
    en_safetensors *f;
    OK(en_safetensors_open(file_of(" {\"b\\u00e4\\ud83d\\ude00\\\"\\/\" : { \"shape\" : [ 2 , 1 ] , \"dtype\":\"I64\" , \"data_offsets\":[ 4 , 20 ] } , \"__metadata__\":{\"k\":\"l\\n\"},\n"
                                   T("none", "F32", "0,3", 4, 4) "," T("a", "F32", "", 0, 4) "} ", 20, -1), &f));
    assert_int_equal(f->n, 3);
    assert_string_equal(en_safetensors_text_of(f, "k"), "l\n");
    assert_null(en_safetensors_text_of(f, "l"));
    assert_null(en_safetensors_find(f, "c"));
    const en_safetensor *b = en_safetensors_find(f, "b\xc3\xa4\xf0\x9f\x98\x80\"/"), *a = en_safetensors_find(f, "a"), *none = en_safetensors_find(f, "none");
    assert_true(b && a && none);
    assert_true(b->ndim == 2 && b->shape[0] == 2 && b->shape[1] == 1 && b->count == 2 && b->begin == 4 && b->end == 20);
    assert_true(a->ndim == 0 && a->count == 1 && none->count == 0);
    float v = 0;
    OK(en_safetensors_read(f, a, &v));
    const uint8_t bytes[4] = { 0, 1, 2, 3 };
    assert_memory_equal(&v, bytes, 4);
    OK(en_safetensors_read(f, none, &v));
    float w[2];
    REFUSED(EN_EDATA, en_safetensors_read(f, b, w), "is I64; F32, F16 and BF16 are read");
    en_safetensors_close(f);
    OK(en_safetensors_open(file_of("{}", 0, -1), &f));
    assert_int_equal(f->n, 0);
    assert_null(en_safetensors_find(f, "a"));
    en_safetensors_close(f);
}

/* Every finite value of 16 bits, against its definition: (-1)^s 2^(e-bias) (1 + m/2^bits), or, for e = 0, without the 1. */
static double defined(uint32_t h, int exponent_bits, int fraction_bits)
{
    const int s = (int)(h >> 15), e = (int)(h >> fraction_bits & ((1u << exponent_bits) - 1)), bias = (1 << (exponent_bits - 1)) - 1;
    const double m = ldexp(h & ((1u << fraction_bits) - 1), -fraction_bits), v = e ? ldexp(1 + m, e - bias) : ldexp(m, 1 - bias);
    return s ? -v : v;
}

static void halves_are_widened_exactly(void **state)
{
    (void)state;
    static const struct { const char *type; int exponent, fraction; } kinds[] = { { "F16", 5, 10 }, { "BF16", 8, 7 } };
    for (int k = 0; k < 2; k++) {
        const uint32_t top = ((1u << kinds[k].exponent) - 1) << kinds[k].fraction;     /* infinity, and NaN beyond it */
        char header[200];
        snprintf(header, sizeof header, "{\"a\":{\"dtype\":\"%s\",\"shape\":[2,%u],\"data_offsets\":[0,%u]}}", kinds[k].type, top, 4 * top);
        const char *p = file_of(header, 0, -1);
        FILE *f = fopen(p, "ab");
        for (uint32_t s = 0; s < 2; s++)
            for (uint32_t h = 0; h < top; h++) fputc((int)(h & 0xff), f), fputc((int)((h | s << 15) >> 8), f);
        fclose(f);
        en_safetensors *st;
        float *v = malloc(2 * (size_t)top * sizeof *v);
        OK(en_safetensors_open(p, &st));
        OK(en_safetensors_read(st, en_safetensors_find(st, "a"), v));
        for (uint32_t i = 0; i < 2 * top; i++) {
            const uint32_t h = i < top ? i : (i - top) | 0x8000;
            const float want = (float)defined(h, kinds[k].exponent, kinds[k].fraction);   /* exact: a float holds both */
            if (memcmp(&v[i], &want, sizeof want)) fail_msg("%s %04x became %a instead of %a", kinds[k].type, h, (double)v[i], (double)want);
        }
        en_safetensors_close(st);
        free(v);

        snprintf(header, sizeof header, "{\"a\":{\"dtype\":\"%s\",\"shape\":[1],\"data_offsets\":[0,2]}}", kinds[k].type);
        for (uint32_t h = top; h <= top + 1; h++) {                                      /* infinity, a NaN */
            f = fopen(file_of(header, 0, -1), "ab");
            fputc((int)(h & 0xff), f), fputc((int)(h >> 8), f);
            fclose(f);
            float one;
            OK(en_safetensors_open(path("a.safetensors"), &st));
            REFUSED(EN_EDATA, en_safetensors_read(st, &st->tensors[0], &one), "value 0 of a is not finite");
            en_safetensors_close(st);
        }
    }
}

static void give(const void *context, size_t i, float *out)
{
    const float *const *v = context;
    memcpy(out, v[i], (i ? 1 : 6) * sizeof *out);
}

static void what_is_written_is_read(void **state)
{
    (void)state;
    static const float a[6] = { 1, -0.f, 0x1p-149f, 3.4028235e38f, 5, 6 }, b[1] = { 7 };
    static const int64_t shape[2] = { 2, 3 };
    const float *values[] = { a, b };
    const en_safetensor_row rows[] = { { "z \"quoted\"", 2, shape }, { "a", 0, NULL } };
    const en_safetensors_text texts[] = { { "k", "[\"\\\"\n\"]" }, { "empty", "" } };
    uint64_t bytes;
    OK(en_safetensors_write(path("w"), 2, texts, 2, rows, give, values, &bytes));
    struct stat st;
    assert_int_equal(stat(path("w"), &st), 0);
    assert_int_equal(st.st_size, bytes);
    assert_int_equal(access(path("w.tmp"), F_OK), -1);
    en_safetensors *f;
    float got[6];
    OK(en_safetensors_open(path("w"), &f));
    assert_int_equal(f->first % 8, 0);
    assert_string_equal(en_safetensors_text_of(f, "k"), texts[0].value);
    assert_string_equal(en_safetensors_text_of(f, "empty"), "");
    OK(en_safetensors_read(f, en_safetensors_find(f, "z \"quoted\""), got));
    assert_memory_equal(got, a, sizeof a);
    OK(en_safetensors_read(f, en_safetensors_find(f, "a"), got));
    assert_memory_equal(got, b, sizeof b);
    en_safetensors_close(f);
    REFUSED(EN_EIO, en_safetensors_write(path("absent/w"), 0, NULL, 0, NULL, give, NULL, NULL), "cannot create");
    REFUSED(EN_EIO, en_safetensors_write("/dev/full/w", 0, NULL, 0, NULL, give, NULL, NULL), "cannot create");
}

/* ---- names --------------------------------------------------------------------------------------------------------------- */

static en_model *built(const char *name)
{
    const en_model_row *row;
    en_model *m;
    OK(en_model_row_find(name, &row));
    OK(en_model_build(row, NULL, 1, &m));
    return m;
}

static void names_of_both_libraries(void **state)
{
    (void)state;
    static const struct { const char *model, *timm, *torchvision; } pairs[] = {          /* spec: torchvision's state dicts */
        { "b0", "conv_stem.weight", "features.0.0.weight" },
        { "b0", "bn1.running_var", "features.0.1.running_var" },
        { "b0", "blocks.0.0.conv_dw.weight", "features.1.0.block.0.0.weight" },
        { "b0", "blocks.0.0.se.conv_reduce.bias", "features.1.0.block.1.fc1.bias" },
        { "b0", "blocks.0.0.se.conv_expand.weight", "features.1.0.block.1.fc2.weight" },
        { "b0", "blocks.0.0.conv_pw.weight", "features.1.0.block.2.0.weight" },          /* projects here ... */
        { "b0", "blocks.0.0.bn2.weight", "features.1.0.block.2.1.weight" },
        { "b0", "blocks.5.3.conv_pw.weight", "features.6.3.block.0.0.weight" },          /* ... and expands here */
        { "b0", "blocks.5.3.conv_dw.weight", "features.6.3.block.1.0.weight" },
        { "b0", "blocks.5.3.se.conv_expand.weight", "features.6.3.block.2.fc2.weight" },
        { "b0", "blocks.5.3.bn3.bias", "features.6.3.block.3.1.bias" },
        { "b0", "conv_head.weight", "features.8.0.weight" },
        { "b0", "bn2.running_mean", "features.8.1.running_mean" },
        { "b0", "classifier.bias", "classifier.1.bias" },
        { "v2s", "blocks.0.1.conv.weight", "features.1.1.block.0.0.weight" },
        { "v2s", "blocks.1.0.conv_exp.weight", "features.2.0.block.0.0.weight" },
        { "v2s", "blocks.1.0.conv_pwl.weight", "features.2.0.block.1.0.weight" },
        { "v2s", "blocks.3.5.se.conv_reduce.weight", "features.4.5.block.2.fc1.weight" },
        { "v2s", "conv_head.weight", "features.7.0.weight" },
        { "mobilenetv2", "blocks.0.0.conv_pw.weight", "features.1.conv.1.weight" },
        { "mobilenetv2", "blocks.0.0.bn2.weight", "features.1.conv.2.weight" },
        { "mobilenetv2", "blocks.1.1.conv_dw.weight", "features.3.conv.1.0.weight" },
        { "mobilenetv2", "blocks.1.1.bn3.weight", "features.3.conv.3.weight" },
        { "mobilenetv2", "conv_head.weight", "features.18.0.weight" },
        { "resnet50", "layer1.0.downsample.1.weight", "layer1.0.downsample.1.weight" },
        { "resnet50", "fc.weight", "fc.weight" },
    };
    char key[EN_KEY_SIZE], other[EN_KEY_SIZE];
    for (size_t p = 0; p < sizeof pairs / sizeof *pairs; p++) {
        en_model *m = built(pairs[p].model);
        bool found = false;
        for (int i = 0; i < m->n_tensors; i++) {
            OK(en_key_of(m, i, EN_KEYS_TIMM, key));
            OK(en_key_of(m, i, EN_KEYS_TORCHVISION, other));
            if (strcmp(key, pairs[p].timm)) continue;
            found = true;
            if (strcmp(other, pairs[p].torchvision)) fail_msg("%s: %s is %s instead of %s", pairs[p].model, key, other, pairs[p].torchvision);
        }
        if (!found) fail_msg("%s has no %s", pairs[p].model, pairs[p].timm);
        en_model_free(m);
    }
    en_model *m = built("mobilenetv1");
    OK(en_key_of(m, 0, EN_KEYS_TIMM, key));
    REFUSED(EN_ENOTSUP, en_key_of(m, 0, EN_KEYS_TORCHVISION, key), "torchvision has no mobilenetv1");
    en_model_free(m);
}

/* Two tensors of one network never get one name. */
static void names_are_different_ones(void **state)
{
    (void)state;
    const en_model_row *row;
    for (int r = 0; (row = en_model_row_at(r)); r++) {
        if (strcmp(row->name, "mobilenetv1") == 0) continue;
        en_model *m = built(row->name);
        char (*key)[EN_KEY_SIZE] = calloc((size_t)m->n_tensors, sizeof *key);
        for (int i = 0; i < m->n_tensors; i++) OK(en_key_of(m, i, EN_KEYS_TORCHVISION, key[i]));
        qsort(key, (size_t)m->n_tensors, sizeof *key, (int (*)(const void *, const void *))strcmp);
        for (int i = 1; i < m->n_tensors; i++)
            if (!*key[i - 1] || strcmp(key[i - 1], key[i]) == 0) fail_msg("%s: '%s' twice", row->name, key[i]);
        free(key);
        en_model_free(m);
    }
}

static void what_libraries_train_with(void **state)
{
    (void)state;
    static const struct { const char *model; en_keys keys; float eps, momentum; en_padding padding; en_normalising normalise; } want[] = {
        { "b0", EN_KEYS_TIMM, 1e-3f, 0.01f, EN_PADDING_SAME, EN_NORMALISE_IMAGENET },
        { "b0", EN_KEYS_TORCHVISION, 1e-5f, 0.1f, EN_PADDING_SYMMETRIC, EN_NORMALISE_IMAGENET },
        { "b4", EN_KEYS_TORCHVISION, 1e-5f, 0.1f, EN_PADDING_SYMMETRIC, EN_NORMALISE_IMAGENET },
        { "b5", EN_KEYS_TORCHVISION, 1e-3f, 0.01f, EN_PADDING_SYMMETRIC, EN_NORMALISE_IMAGENET },
        { "v2s", EN_KEYS_TIMM, 1e-3f, 0.1f, EN_PADDING_SAME, EN_NORMALISE_UNIT },
        { "v2b0", EN_KEYS_TIMM, 1e-3f, 0.1f, EN_PADDING_SAME, EN_NORMALISE_IMAGENET },
        { "v2s", EN_KEYS_TORCHVISION, 1e-3f, 0.1f, EN_PADDING_SYMMETRIC, EN_NORMALISE_IMAGENET },
        { "v2l", EN_KEYS_TORCHVISION, 1e-3f, 0.1f, EN_PADDING_SYMMETRIC, EN_NORMALISE_UNIT },
        { "resnet50", EN_KEYS_TORCHVISION, 1e-5f, 0.1f, EN_PADDING_SYMMETRIC, EN_NORMALISE_IMAGENET },
    };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        const en_model_row *row;
        OK(en_model_row_find(want[i].model, &row));
        const en_variant v = en_variant_of(row, want[i].keys);
        if (v.bn_eps != want[i].eps || v.bn_momentum != want[i].momentum || v.padding != want[i].padding || v.normalise != want[i].normalise)
            fail_msg("%s of %s: eps %g, momentum %g, padding %d, pixels %s", want[i].model, en_keys_name(want[i].keys), (double)v.bn_eps, (double)v.bn_momentum, (int)v.padding,
                     en_normalise_name(v.normalise));
    }
}

int main(void)
{
#define TEST(t) cmocka_unit_test_setup_teardown(t, make_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        TEST(lengths_are_compared_with_the_file), TEST(headers_are_read_strictly), TEST(places_are_compared_with_each_other),
        TEST(sound_files_are_read_in_any_order), TEST(halves_are_widened_exactly), TEST(what_is_written_is_read),
        cmocka_unit_test(names_of_both_libraries), cmocka_unit_test(names_are_different_ones), cmocka_unit_test(what_libraries_train_with),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

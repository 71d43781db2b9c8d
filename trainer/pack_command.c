/* pack_command.c - `effnet pack`: an image folder as one HDF5 file, and the check of such a file. */
#include "trainer/commands.h"

#include "data/pack.h"
#include "trainer/json.h"

#include <inttypes.h>
#include <stdio.h>

static void print_json(const char *path, const en_pack_report *r)
{
    printf("{\"file\":");
    en_json_print(path);
    printf(",\"samples\":%" PRId64 ",\"classes\":%" PRId64 ",\"bad\":%" PRId64 ",\"shrunk\":%" PRId64 ",\"damaged\":%" PRId64, r->samples, r->classes,
           r->bad, r->shrunk, r->damaged);
    printf(",\"bytes_in\":%" PRId64 ",\"bytes_out\":%" PRId64 ",\"seconds\":%.3f,\"files_per_s\":%.1f,\"mb_per_s\":%.1f}\n", r->bytes_in, r->bytes_out,
           r->seconds, (double)r->samples / r->seconds, (double)r->bytes_in / 1e6 / r->seconds);
}

static en_status verify(const en_options *o)
{
    static const struct { const char *field, *name; } of_packing[] = { { "split", "--split" }, { "max_side", "--max-side" },
        { "quality", "--quality" }, { "max_bad", "--max-bad" }, { "max_pixels", "--max-pixels" } };
    en_pack_report r = { 0 };
    EN_REQUIRE(o->operands == 1, EN_EUSAGE, "--verify takes one file, but there is '%s' too; usage: effnet pack --verify FILE.h5", o->operand[1]);
    for (size_t i = 0; i < sizeof of_packing / sizeof *of_packing; i++)
        EN_REQUIRE(!en_option_given(o, of_packing[i].field), EN_EUSAGE, "--verify writes nothing, so %s has no meaning with it; leave it out",
                   of_packing[i].name);
    const en_status status = en_pack_verify(o->operand[0], (int)o->workers, false, &r);
    if (o->json && r.samples > 0) print_json(o->operand[0], &r);
    if (status != EN_OK || o->json) return status;
    printf("%s: %" PRId64 " samples of %" PRId64 " classes, %.1f MB, every byte as it was packed (%.1f s, %.2f GB/s)\n", o->operand[0], r.samples,
           r.classes, (double)r.bytes_out / 1e6, r.seconds, (double)r.bytes_out / 1e9 / r.seconds);
    if (r.bad > 0) printf("%" PRId64 " of the files could not be decoded when they were packed\n", r.bad);
    return EN_OK;
}

en_status en_command_pack(const en_options *o)
{
    if (o->verify) return verify(o);
    en_pack_report r = { 0 };
    EN_REQUIRE(o->operands == 2, EN_EUSAGE, "which file to make? usage: effnet pack %s FILE.h5, or effnet pack --verify FILE.h5", o->operand[0]);
    EN_REQUIRE(o->max_side > 0 || !en_option_given(o, "quality"), EN_EUSAGE,
               "--quality is that of shrunk images; give --max-side too, or leave it out");
    const char *target = o->operand[1];
    const en_pack_config c = { .source = o->operand[0], .target = target, .split = o->split, .max_side = o->max_side, .quality = (int)o->quality,
                               .workers = (int)o->workers, .max_pixels = o->max_pixels, .max_bad = o->max_bad };
    EN_TRY(en_pack(&c, &r), "making %s", target);
    if (o->json) {
        print_json(target, &r);
        return EN_OK;
    }
    printf("%s: %" PRId64 " sample%s of %" PRId64 " class%s, %.1f MB (%.1f s, %.0f files/s, %.1f MB/s)\n", target, r.samples, r.samples == 1 ? "" : "s",
           r.classes, r.classes == 1 ? "" : "es", (double)r.bytes_out / 1e6, r.seconds, (double)r.samples / r.seconds, (double)r.bytes_in / 1e6 / r.seconds);
    if (r.shrunk > 0) printf("%" PRId64 " were shrunk to %" PRId64 " pixels: %.1f MB before\n", r.shrunk, o->max_side, (double)r.bytes_in / 1e6);
    if (r.bad > 0) printf("%" PRId64 " cannot be decoded; they are packed as they are, and training treats them as in the folder\n", r.bad);
    const bool only_val = en_packed_has(target, "val") && !en_packed_has(target, "train");
    if (r.classes > 1) printf(only_val ? "next: effnet eval --checkpoint RUN --data %s\n" : "next: effnet train --data %s --run RUN\n", target);
    return EN_OK;
}

/* pack_h5_parse.c - HDF5 as packing writes it, read by hand.
 *
 * HDF5's own parser is for files of friends: with its checksums made right, a fuzzer brings libhdf5 1.10 down within seconds (a null
 * pointer where a B-tree should be, for one).  Datasets are copied between people, so the file that packing writes is kept to a part of
 * the format that is small enough to be read here, every length checked before it is used, and nothing else is accepted:
 *
 *     superblock    version 2 or 3, no user block, no extension          48 bytes
 *     object        header of version 2, links and attributes in it      "OHDR", messages, checksum; continued in "OCHK", messages, checksum
 *     dataset       rank 1, a type of the table below, contiguous
 *
 * (HDF5 File Format Specification 3.0, sections II.A, IV.A.1.b and IV.A.2.)  Everything read here lies under a checksum, Jenkins's
 * lookup3 as the format has it; values have CRC-32s of our own (pack_h5_read.c).  No recursion, no references but continuations and
 * links, of which each is followed once. */
#include "pack_h5_parse.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUPERBLOCK = 48, SIGNATURE = 8 };
enum { DATASPACE = 1, DATATYPE = 3, LINK = 6, EXTERNAL_FILES = 7, LAYOUT = 8, FILTERS = 11, ATTRIBUTE = 12, CONTINUATION = 16 };
static const uint64_t nowhere = UINT64_MAX;

uint64_t en_h5_number(const uint8_t *p, int bytes)
{
    uint64_t v = 0;
    for (int i = bytes - 1; i >= 0; i--) v = v << 8 | p[i];
    return v;
}

/* ---- lookup3 (Bob Jenkins, public domain), byte by byte ------------------------------------------------------------------ */

static uint32_t rotate(uint32_t x, int k) { return x << k | x >> (32 - k); }

uint32_t en_h5_checksum(const uint8_t *p, size_t n)
{
    uint32_t a = 0xdeadbeef + (uint32_t)n, b = a, c = a;
    for (; n > 12; n -= 12, p += 12) {
        a += (uint32_t)en_h5_number(p, 4);
        b += (uint32_t)en_h5_number(p + 4, 4);
        c += (uint32_t)en_h5_number(p + 8, 4);
        a -= c; a ^= rotate(c, 4);  c += b;
        b -= a; b ^= rotate(a, 6);  a += c;
        c -= b; c ^= rotate(b, 8);  b += a;
        a -= c; a ^= rotate(c, 16); c += b;
        b -= a; b ^= rotate(a, 19); a += c;
        c -= b; c ^= rotate(b, 4);  b += a;
    }
    if (n == 0) return c;
    uint8_t rest[12] = { 0 };
    memcpy(rest, p, n);
    a += (uint32_t)en_h5_number(rest, 4);
    b += (uint32_t)en_h5_number(rest + 4, 4);
    c += (uint32_t)en_h5_number(rest + 8, 4);
    c ^= b; c -= rotate(b, 14);
    a ^= c; a -= rotate(c, 11);
    b ^= a; b -= rotate(a, 25);
    c ^= b; c -= rotate(b, 16);
    a ^= c; a -= rotate(c, 4);
    b ^= a; b -= rotate(a, 14);
    c ^= b; c -= rotate(b, 24);
    return c;
}

/* ---- superblock and object headers --------------------------------------------------------------------------------------- */

en_status en_h5_read_at(const en_h5_file *f, int64_t at, uint8_t *to, size_t n)
{
    EN_REQUIRE(at >= 0 && at <= f->size && (int64_t)n <= f->size - at, EN_EDATA, "%s is damaged: something of it lies outside of it", f->path);
    for (size_t have = 0; have < n;) {
        const ssize_t got = pread(f->fd, to + have, n - have, (off_t)at + (off_t)have);
        if (got < 0 && errno == EINTR) continue;
        EN_REQUIRE(got >= 0, EN_EIO, "%s cannot be read (%s)", f->path, strerror(errno));
        EN_REQUIRE(got > 0, EN_EDATA, "%s is no longer whole: it became shorter", f->path);
        have += (size_t)got;
    }
    return EN_OK;
}

en_status en_h5_root(const en_h5_file *f, int64_t *at)
{
    uint8_t s[SUPERBLOCK];
    const bool long_enough = f->size >= SUPERBLOCK;
    if (long_enough) EN_TRY(en_h5_read_at(f, 0, s, sizeof s), "opening %s", f->path);
    EN_REQUIRE(long_enough && memcmp(s, "\x89HDF\r\n\x1a\n", SIGNATURE) == 0, EN_EDATA, "%s is no packed dataset; `effnet pack` makes them", f->path);
    EN_REQUIRE((s[8] == 2 || s[8] == 3) && s[9] == 8 && s[10] == 8 && en_h5_number(s + 12, 8) == 0, EN_EDATA,
               "%s is an HDF5 file, but not as `effnet pack` writes it (superblock version %d); make it with `effnet pack`", f->path, s[8]);
    const uint64_t end = en_h5_number(s + 28, 8);
    EN_REQUIRE(end <= (uint64_t)f->size || end > INT64_MAX, EN_EDATA, "%s is cut off: it has %" PRId64 " bytes of %" PRIu64
               "; copy it again, or pack again", f->path, f->size, end);
    const bool sound = en_h5_checksum(s, SUPERBLOCK - 4) == en_h5_number(s + 44, 4);
    EN_REQUIRE(sound && end == (uint64_t)f->size && en_h5_number(s + 20, 8) == nowhere, EN_EDATA,
               "%s is damaged: its first %d bytes are not as they were written; copy it again, or pack again", f->path, SUPERBLOCK);
    *at = (int64_t)en_h5_number(s + 36, 8);
    return EN_OK;
}

#define SOUND(cond, what) EN_REQUIRE(cond, EN_EDATA, "%s is damaged: " what "; copy it again, or pack again", f->path)

/* Takes n bytes at `at` into the object, compared with the checksum at their end. */
static en_status take_chunk(const en_h5_file *f, int64_t at, size_t n, en_h5_object *o, uint8_t **chunk)
{
    SOUND(o->chunks < EN_H5_CHUNKS && n >= 8 && n <= EN_H5_CHUNK_BYTES, "an object header is too large");
    SOUND(at >= 0 && at <= f->size && (int64_t)n <= f->size - at, "an object header lies outside the file");
    *chunk = malloc(n);
    EN_REQUIRE(*chunk, EN_ENOMEM, "no memory for an object header of %s", f->path);
    o->chunk[o->chunks++] = *chunk;
    EN_TRY(en_h5_read_at(f, at, *chunk, n), "reading an object header");
    SOUND(en_h5_checksum(*chunk, n - 4) == en_h5_number(*chunk + n - 4, 4), "the checksum of an object header differs");
    return EN_OK;
}

/* The messages in n bytes: type, size, flags, with an order number when the header's flags say so, and data. */
static en_status take_messages(const en_h5_file *f, const uint8_t *p, size_t n, bool ordered, en_h5_object *o)
{
    const size_t head = ordered ? 6 : 4;
    while (n >= head) {                        /* what is left of fewer bytes is a gap */
        const size_t size = (size_t)en_h5_number(p + 1, 2);
        SOUND(size <= n - head && o->messages < EN_H5_MESSAGES, "an object header has a message that does not fit");
        SOUND(!(p[3] & 2) || p[0] == 0, "an object header shares a message");
        if (p[0]) o->message[o->messages++] = (en_h5_message){ p[0], p + head, size };
        p += head + size;
        n -= head + size;
    }
    return EN_OK;
}

en_status en_h5_read(const en_h5_file *f, int64_t at, en_h5_object *o)
{
    uint8_t head[6 + 16 + 4 + 8], *chunk;       /* signature, version, flags; times, limits where flags say so; length: at most */
    *o = (en_h5_object){ 0 };
    SOUND(at >= 0 && at <= f->size - (int64_t)sizeof head, "an object header lies outside the file");
    EN_TRY(en_h5_read_at(f, at, head, sizeof head), "reading an object header");
    SOUND(memcmp(head, "OHDR\2", 5) == 0, "an object header is of another kind than packing writes");
    const uint8_t flags = head[5];
    const size_t width = (size_t)1 << (flags & 3), before = 6 + (flags & 32 ? 16 : 0) + (flags & 16 ? 4 : 0);
    const uint64_t first = en_h5_number(head + before, (int)width);
    SOUND(first <= EN_H5_CHUNK_BYTES, "an object header is too large");
    EN_TRY(take_chunk(f, at, before + width + (size_t)first + 4, o, &chunk), "reading an object header");
    EN_TRY(take_messages(f, chunk + before + width, (size_t)first, flags & 4, o), "reading an object header");
    for (int i = 0; i < o->messages; i++) {
        const en_h5_message m = o->message[i];
        if (m.type != CONTINUATION) continue;
        SOUND(m.n >= 16, "an object header has a message that does not fit");
        const uint64_t to = en_h5_number(m.at, 8), n = en_h5_number(m.at + 8, 8);
        SOUND(to <= INT64_MAX && n <= EN_H5_CHUNK_BYTES, "an object header is too large");
        EN_TRY(take_chunk(f, (int64_t)to, (size_t)n, o, &chunk), "reading an object header");
        SOUND(memcmp(chunk, "OCHK", 4) == 0, "an object header does not go on where it says");
        EN_TRY(take_messages(f, chunk + 4, (size_t)n - 8, flags & 4, o), "reading an object header");
    }
    return EN_OK;
}

void en_h5_free(en_h5_object *o)
{
    for (int i = 0; i < o->chunks; i++) free(o->chunk[i]);
    *o = (en_h5_object){ 0 };
}

/* ---- messages -------------------------------------------------------------------------------------------------------------- */

static const en_h5_message *find(const en_h5_object *o, uint8_t type)
{
    for (int i = 0; i < o->messages; i++) if (o->message[i].type == type) return &o->message[i];
    return NULL;
}

/* Version 2: version, rank, flags, kind (0 scalar, 1 simple, 2 null), extents. */
static int shape_of(const uint8_t *p, size_t n, uint64_t *extent)
{
    *extent = 0;
    if (n < 4 || p[0] != 2 || p[3] > 1 || (p[3] == 0) != (p[1] == 0) || n < 4 + 8 * (size_t)p[1]) return -1;
    if (p[1] == 1) *extent = en_h5_number(p + 4, 8);
    return p[1];
}

int en_h5_shape(const en_h5_object *o, uint64_t *extent)
{
    const en_h5_message *m = find(o, DATASPACE);
    *extent = 0;
    return m ? shape_of(m->at, m->n, extent) : -1;
}

/* Class and version, 24 bits of the class, size; of integers, then, the first bit and the number of bits. */
static en_h5_kind kind_of(const uint8_t *p, size_t n, size_t *elem)
{
    *elem = 0;
    if (n < 8) return EN_H5_OTHER;
    const int class = p[0] & 15;
    const uint64_t bits = en_h5_number(p + 1, 3), size = en_h5_number(p + 4, 4);
    *elem = (size_t)size;
    if (class == 3) return (bits & 15) == 1 && size > 0 ? EN_H5_TEXT : EN_H5_OTHER;
    if (class != 0 || n < 12 || bits & ~8ull || en_h5_number(p + 8, 2) != 0 || en_h5_number(p + 10, 2) != 8 * size) return EN_H5_OTHER;
    if (bits) return size == 8 ? EN_H5_I64 : size == 4 ? EN_H5_I32 : EN_H5_OTHER;
    return size == 4 ? EN_H5_U32 : size == 1 ? EN_H5_U8 : EN_H5_OTHER;
}

en_h5_kind en_h5_type(const en_h5_object *o, size_t *elem)
{
    const en_h5_message *m = find(o, DATATYPE);
    *elem = 0;
    return m ? kind_of(m->at, m->n, elem) : EN_H5_OTHER;
}

/* Version 3 or 4 (which differ in chunks only): version, class (1: contiguous), address, bytes. */
bool en_h5_place(const en_h5_object *o, int64_t *at, int64_t *bytes)
{
    const en_h5_message *m = find(o, LAYOUT);
    *at = -1;
    *bytes = 0;
    if (!m || m->n < 18 || (m->at[0] != 3 && m->at[0] != 4) || m->at[1] != 1 || find(o, EXTERNAL_FILES) || find(o, FILTERS)) return false;
    const uint64_t address = en_h5_number(m->at + 2, 8), n = en_h5_number(m->at + 10, 8);
    if (address <= INT64_MAX && n <= INT64_MAX) *at = (int64_t)address, *bytes = (int64_t)n;
    return true;
}

/* Version 1: version, flags, kind, order, character set, each where the flags say so, length of the name, name, address. */
static bool is_link(const en_h5_message *m, const char *name, int64_t *at)
{
    if (m->n < 2 || m->at[0] != 1) return false;
    const uint8_t flags = m->at[1];
    size_t p = 2, width = (size_t)1 << (flags & 3);
    if (flags & 8) {
        if (p >= m->n || m->at[p] != 0) return false;          /* soft, external */
        p++;
    }
    if (flags & 4) p += 8;
    if (flags & 16) p++;
    if (p + width > m->n) return false;
    const uint64_t length = en_h5_number(m->at + p, (int)width);
    p += width;
    if (length != strlen(name) || length > m->n - p || m->n - p - length < 8 || memcmp(m->at + p, name, length) != 0) return false;
    const uint64_t address = en_h5_number(m->at + p + length, 8);
    *at = address <= INT64_MAX ? (int64_t)address : -1;
    return true;
}

bool en_h5_hard_link(const en_h5_object *group, const char *name, int64_t *at)
{
    for (int i = 0; i < group->messages; i++)
        if (group->message[i].type == LINK && is_link(&group->message[i], name, at)) return true;
    return false;
}

/* Version 3: version, flags (1, 2: shared parts), sizes of name, type and space (2 bytes each), character set; then these and the value. */
const uint8_t *en_h5_attribute(const en_h5_object *o, const char *name, en_h5_kind kind, size_t *n)
{
    for (int i = 0; i < o->messages; i++) {
        const en_h5_message *m = &o->message[i];
        if (m->type != ATTRIBUTE || m->n < 9 || m->at[0] != 3 || m->at[1] != 0) continue;
        const size_t named = (size_t)en_h5_number(m->at + 2, 2), typed = (size_t)en_h5_number(m->at + 4, 2);
        const size_t shaped = (size_t)en_h5_number(m->at + 6, 2);
        const uint8_t *p = m->at + 9;
        if (named + typed + shaped > m->n - 9 || named != strlen(name) + 1 || memcmp(p, name, named) != 0) continue;
        uint64_t extent;
        const bool right = kind_of(p + named, typed, n) == kind && shape_of(p + named + typed, shaped, &extent) == 0;
        return right && *n <= m->n - 9 - named - typed - shaped ? p + named + typed + shaped : NULL;
    }
    return NULL;
}

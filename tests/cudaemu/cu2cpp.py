#!/usr/bin/env python3
"""cu2cpp.py IN.cu OUT.cpp [-I DIR]... - rewrites the three spellings of CUDA that are not C++, and leaves every line where it was.

    k<T, 3><<<grid, block, smem, stream>>>(x)    ->  cudaemu::launcher((k<T, 3>), "k<T, 3>", __FILE__, __LINE__, grid, ...)(x)
    extern __shared__ [align] T name[];          ->  T *name = (T *)cudaemu::dyn_smem();
    __shared__ [align] T a[2][N], b;             ->  a reference per array into the block's shared memory
    void __launch_bounds__(N) k(...) {           ->  ... { cudaemu::launch_bounds(N);
    #include "device.cuh"                        ->  the same header, rewritten, beside OUT.cpp

OUT.cpp.d lists what was read, for make and ninja.
Comments and strings are masked before anything is looked for.  Not understood: <<<>>> with template arguments left to be
deduced (write them), and `extern __shared__` outside a function.
"""
import argparse
import os
import re


def mask(s):
    """The same text, with comments and strings blanked."""
    blank = lambda m: re.sub(r"[^\n]", " ", m.group())
    return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', blank, s, flags=re.S)


def close(m, i, pair):
    """The index after the bracket that closes the one at i."""
    depth = 0
    for j in range(i, len(m)):
        depth += (m[j] == pair[0]) - (m[j] == pair[1])
        if depth == 0:
            return j + 1
    raise SyntaxError("line %d: '%s' is never closed" % (m.count("\n", 0, i) + 1, pair[0]))


def kernel_name(m, i):
    """The start of the kernel's name, template arguments included, that ends at i."""
    j = len(m[:i].rstrip())
    if m[j - 1] == ">":
        depth = 0
        while j:
            j -= 1
            depth += (m[j] == ">") - (m[j] == "<")
            if depth == 0:
                break
        j = len(m[:j].rstrip())
    while j:
        if m[j - 1] in ")]":                                          # table[i], (k)
            pair = "()" if m[j - 1] == ")" else "[]"
            depth = 0
            while j:
                j -= 1
                depth += (m[j] == pair[1]) - (m[j] == pair[0])
                if depth == 0:
                    break
        elif m[j - 2:j] == "->":
            j -= 2
        elif re.match(r"[\w:#.]", m[j - 1]):
            j -= 1
        else:
            break
    return j


def launches(s, m):
    for k in re.finditer("<<<", m):
        start, end = kernel_name(m, k.start()), m.index(">>>", k.end()) + 3
        while m[k.end():end].count("(") > m[k.end():end].count(")"):
            end = m.index(">>>", end) + 3
        name = s[start:k.start()].strip()
        quoted = re.sub(r"\s+", " ", name).replace('"', "")
        yield start, end, 'cudaemu::launcher((%s), "%s", __FILE__, __LINE__, %s)' % (name, quoted, s[k.end():end - 3])


def split(m, a, b):
    """m[a:b] cut at its commas outside brackets."""
    depth, parts, from_ = 0, [], a
    for j in range(a, b):
        depth += (m[j] in "<([{") - (m[j] in ">)]}")
        if m[j] == "," and depth == 0:
            parts.append((from_, j))
            from_ = j + 1
    return parts + [(from_, b)]


def shared(s, m):
    align = r"(?:__align__|alignas)\s*\("
    for k in re.finditer(r"\b((?:extern\s+|static\s+)*)__shared__\b", m):
        end = k.end()
        while m[end] != ";":
            end = close(m, end, "{}") if m[end] == "{" else end + 1
        extern = "extern" in k[1]
        body = k.end()
        cut = m[:end]
        for a in re.finditer(align, m[body:end]):                     # alignment: every array here has 16 bytes at least
            a0, a1 = body + a.start(), close(m, body + a.end() - 1, "()")
            cut = cut[:a0] + " " * (a1 - a0) + cut[a1:]
        text = s[:body] + "".join(c if cut[i] == m[i] else " " for i, c in enumerate(s[body:end], body))
        parts = split(cut, body, end)
        a, b = parts[0]
        first = a + re.search(r"[\s*&]*\w+\s*(\[.*\]\s*)*$", cut[a:b], flags=re.S).start()
        typ, out = re.sub(r"\bvolatile\b", "", text[a:first]).strip(), []
        for n, (a, b) in enumerate(parts):
            stars, name, dims = re.match(r"\s*([*\s]*)(\w+)\s*(.*)$", text[first if n == 0 else a:b], flags=re.S).groups()
            if extern:
                out.append("%s *%s = (%s *)cudaemu::dyn_smem();" % (typ, name, typ))
                continue
            if n == 0:
                out.append("typedef %s %s_base_;" % (typ, name))
                base = name + "_base_"
            out.append("static char %s_key_; typedef %s %s%s_type_%s; auto &%s = cudaemu::shared_ref<%s_type_>(&%s_key_);"
                       % (name, base, stars, name, dims.strip(), name, name, name))
        yield k.start(), end + 1, " ".join(out)


def bounds(s, m):
    for k in re.finditer(r"\b__launch_bounds__\s*\(", m):
        end = close(m, k.end() - 1, "()")
        params = m.index("(", end)
        brace = re.match(r"\s*\{", m[close(m, params, "()"):])
        if brace:                                                     # a definition, not a declaration
            at = close(m, params, "()") + brace.end()
            yield at, at, " cudaemu::launch_bounds(%s);" % s[k.end():end - 1]


def rewrite(s):
    m, out, pos = mask(s), [], 0
    for a, b, new in sorted([*launches(s, m), *shared(s, m), *bounds(s, m)]):
        out += [s[pos:a], new, "\n" * (s.count("\n", a, b) - new.count("\n"))]
        pos = b
    return "".join(out) + s[pos:]


def convert(source, out, dirs, read, seen):
    """Writes source, rewritten, to out; headers called *.cuh follow."""
    read.append(source)
    with open(source) as f:
        text = f.read()

    def header(m):
        for d in [os.path.dirname(source)] + dirs:
            path = os.path.normpath(os.path.join(d, m[2]))
            if os.path.exists(path):
                copy = os.path.join(os.path.dirname(out), re.sub(r"\W", "_", path) + ".cuh")
                if path not in seen:
                    seen.add(path)
                    convert(path, copy, dirs, read, seen)
                return m[1] + '"' + copy + '"'
        return m[0]

    text = re.sub(r'(?m)^([ \t]*#[ \t]*include[ \t]*)"([^"\n]+\.cuh)"', header, rewrite(text))
    with open(out, "w") as f:
        f.write('#line 1 "%s"\n%s' % (source, text))


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("source")
    options.add_argument("out")
    options.add_argument("-I", dest="dirs", action="append", default=[])
    args = options.parse_args()
    files = []
    convert(os.path.abspath(args.source), os.path.abspath(args.out), args.dirs, files, set())
    with open(args.out + ".d", "w") as d:
        d.write("%s: %s\n" % (os.path.abspath(args.out), " ".join(f.replace(" ", "\\ ") for f in files)))

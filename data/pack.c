#include "pack.h"

en_status en_pack(const en_pack_config *c, en_pack_report *report)
{
    (void)c; (void)report;
    return en_raise(EN_ENOTSUP, __FILE__, __LINE__, __func__, "packing is not built yet");
}

en_status en_pack_verify(const char *path, int workers, bool quiet, en_pack_report *report)
{
    (void)path; (void)workers; (void)quiet; (void)report;
    return en_raise(EN_ENOTSUP, __FILE__, __LINE__, __func__, "verifying is not built yet");
}

#include "trainer/commands.h"

en_status en_model_from_options(const en_options *o, int classes, int channel_align, en_model **out)
{
    *out = NULL;
    const char *name = o->command == EN_DESCRIBE && o->operands == 1 ? o->operand[0] : o->model;
    const en_model_row *row;
    EN_TRY(en_model_row_find(name, &row), "looking up the model");
    const en_model_overrides overrides = {
        .width = o->width, .depth = o->depth, .phi = o->phi, .resolution = (int)o->image_size,
        .classes = classes > 0 ? classes : (int)o->classes, .dropout = (float)o->dropout, .drop_path = (float)o->drop_path };
    EN_TRY(en_model_build(row, &overrides, channel_align, out), "building the model");
    return EN_OK;
}

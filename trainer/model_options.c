#include "trainer/commands.h"
#include "trainer/input.h"

en_status en_model_from_options(const en_options *o, int classes, int channel_align, en_model **out)
{
    *out = NULL;
    const bool described = o->command == EN_DESCRIBE;
    const char *name = described && o->operands == 1 ? o->operand[0] : o->model;
    const en_model_row *row;
    static const char *const bases[] = { "alpha", "beta", "gamma" };
    for (int i = 0; i < 3; i++)
        EN_REQUIRE(o->phi > 0 || !en_option_given(o, bases[i]), EN_EUSAGE, "--%s is the base of a power of --phi; give --phi too, or leave it out",
                   bases[i]);
    EN_REQUIRE(!o->image_size || !o->resolution, EN_EUSAGE, "--image-size %d and --resolution %g both say how large images are: leave one out",
               (int)o->image_size, o->resolution);
    EN_TRY(en_model_row_find(name, &row), "looking up the model");
    const en_model_overrides overrides = {
        .width = o->width, .depth = o->depth, .scale = o->resolution, .phi = o->phi, .alpha = o->alpha, .beta = o->beta, .gamma = o->gamma,
        .resolution = (int)o->image_size, .classes = classes > 0 ? classes : (int)o->classes, .dropout = (float)o->dropout,
        .drop_path = (float)o->drop_path, .normalise = en_normalise_asked(o), .eval_crop = en_eval_crop_asked(o), .evaluation = described && !o->memory };
    EN_TRY(en_model_build(row, &overrides, channel_align, out), "building the model");
    return EN_OK;
}

en_status en_model_resized(const en_model *m, int side, float dropout, en_model **out)
{
    const en_model_overrides overrides = {
        .width = m->width, .depth = m->depth, .classes = m->classes, .dropout = dropout, .drop_path = m->drop_path, .bn_eps = m->bn_eps,
        .bn_momentum = m->bn_momentum, .padding = m->same_padding ? EN_PADDING_SAME : EN_PADDING_SYMMETRIC, .normalise = m->normalise, .eval_crop = m->eval_crop,
        .resolution = side };
    return en_model_build(m->row, &overrides, m->channel_align, out);
}

en_status en_eval_model_from_options(const en_options *o, const en_model *trained, en_model **out)
{
    const int side = o->eval_size > 0 ? (int)o->eval_size : en_model_eval_side(trained->row, trained->resolution);
    return en_model_resized(trained, side, trained->dropout, out);
}

/* scaling/scaling.c - `effnet scaling`: how much faster with more ranks, and where the time goes. */
#include "trainer/scaling/measure.h"

en_status en_command_scaling(const en_options *o)
{
    EN_REQUIRE(o->predict || o->ranks[0], EN_EUSAGE, "say --ranks 1,2,4 to measure, or --predict: effnet scaling --predict --model b7 --cluster "
               "launch/clusters/h200-ndr.txt --gpus 8,64,512");
    EN_REQUIRE(!o->predict || !o->ranks[0], EN_EUSAGE, "--ranks measures and --predict does not: choose one (--predict takes --gpus)");
    return o->predict ? en_scaling_predict(o) : en_scaling_measure(o);
}

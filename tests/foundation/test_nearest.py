from glue_cli.foundation.nearest import did_you_mean, nearest


def test_near_names():
    assert nearest("epoch", ["epochs", "lr"]) == "did you mean 'epochs'?"
    assert nearest("zzz", ["epochs", "lr"]) == "known: epochs, lr"


def test_several_names():
    assert did_you_mean("epocs", ["lr", "epochs", "epoch"], most=2) == "did you mean 'epochs' or 'epoch'?"
    assert did_you_mean("timn", ["timm"], ending=":vit") == "did you mean 'timm:vit'?"
    assert did_you_mean("zzz", ["resnet1"]) == ""

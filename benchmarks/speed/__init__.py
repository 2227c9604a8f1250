"""How fast are training and its parts, beside other programs?"""
